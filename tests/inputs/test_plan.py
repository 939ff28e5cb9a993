"""A damaged plan is refused, also if its digests are right."""

import hashlib
from pathlib import Path

import pytest

from mfcli.errors import NoInputsError
from mfcli.inputs.plan import Plan


@pytest.mark.parametrize(
    "manifest",
    [
        "[" * 10**5,
        "[]",
        '{"schema": "mf.plan/1", "inputs": 1e999, "shard_size": 1, "sha256": []}',
        '{"schema": "mf.plan/1", "inputs": 1, "shard_size": 0, "sha256": ["0"]}',
        '{"schema": "mf.plan/1", "inputs": 9, "shard_size": 3, "sha256": ["0"]}',
    ],
    ids=["nested", "list", "infinite", "no size", "shards missing"],
)
def test_a_damaged_manifest_is_refused(manifest: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(manifest)
    with pytest.raises(NoInputsError, match="is not a complete plan"):
        Plan.read(tmp_path)


@pytest.mark.parametrize(
    "row",
    [
        "{",
        "[" * 10**5,
        "[]",
        "{}",
        '{"input": 5, "input_b64": null, "member": null}',
        '{"input": "a.zip", "input_b64": null, "member": ["b"]}',
        '{"input": "a", "input_b64": "a", "member": null}',
    ],
)
def test_a_damaged_row_is_refused(row: str, tmp_path: Path) -> None:
    (tmp_path / "shard-00000.jsonl").write_text(row)
    plan = Plan(tmp_path, 1, 1, (hashlib.sha256(row.encode()).hexdigest(),))
    with pytest.raises(NoInputsError, match=r"shard-00000\.jsonl is damaged"):
        list(plan.names(0))
