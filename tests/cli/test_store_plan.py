"""Plans and parts in object stores."""

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Ran

pytest.importorskip("obstore")
pytest.importorskip("botocore")
pytest.importorskip("moto.server")

from object_store import DENIED, ObjectStore

PLAN, OUT = "s3://photos/plan", "s3://photos/out"


@pytest.fixture
def planned(store: ObjectStore, mf: Callable[..., Ran], coffee: Path) -> ObjectStore:
    for name in ("a", "b#1", "c"):
        store.put(f"s3://photos/in/{name}.jpg", coffee.read_bytes())
    ran = mf("plan", "s3://photos/in/", "-o", PLAN, "--shard-size", "2")
    assert (ran.code, ran.err) == (0, f"note: 3 pictures in 2 shards; mf predict --plan {PLAN} -o OUT\n")
    return store


def status(mf: Callable[..., Ran], command: str = "status") -> dict[str, object]:
    row: dict[str, object] = json.loads(mf("plan", command, PLAN, OUT, "--format", "jsonl").out)
    return row


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_job_from_store_to_store(planned: ObjectStore, mf: Callable[..., Ran], format: str) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    assert [key for key in planned.list("photos") if key.startswith("plan/")] == [
        "plan/plan.json",
        "plan/shard-00000.jsonl",
        "plan/shard-00001.jsonl",
    ]
    assert mf("predict", "--plan", PLAN, "-o", OUT, "--shard", "1/2", "--format", format).code == 0
    assert (status(mf)["done"], status(mf)["missing_shards"]) == (1, "0")
    assert mf("plan", "finish", PLAN, OUT).code == 9
    planned.requests.clear()
    assert mf("predict", "--plan", PLAN, "-o", OUT, "--format", format).code == 0
    assert ("GET", "/photos/in/c.jpg") not in planned.requests
    assert (status(mf, "finish")["ok"], status(mf)["missing_shards"]) == (3, "")
    assert [key for key in planned.list("photos") if key.startswith("out/")] == [
        "out/_SUCCESS",
        "out/_job.json",
        "out/_part-00000.json",
        "out/_part-00001.json",
        "out/_summary.json",
        f"out/part-00000.{format}",
        f"out/part-00001.{format}",
    ]


def test_a_plan_has_what_the_listing_says(planned: ObjectStore, coffee: Path) -> None:
    row = json.loads(planned.get(f"{PLAN}/shard-00001.jsonl"))
    assert (row["input"], row["size_bytes"]) == ("s3://photos/in/c.jpg", coffee.stat().st_size)
    assert re.fullmatch('"[0-9a-f]{32}"', row["etag"])


def test_status_lists_once(planned: ObjectStore, mf: Callable[..., Ran]) -> None:
    mf("predict", "--plan", PLAN, "-o", OUT)
    planned.requests.clear()
    status(mf)
    paths = [path for _, path in planned.requests]
    assert len([path for path in paths if "list-type" in path]) == 1
    assert not [path for path in paths if "part-0000" in path and not path.startswith("/photos/out/_part")]


def test_counts_and_parts_are_read_at_once(planned: ObjectStore, mf: Callable[..., Ran]) -> None:
    assert mf("predict", "--plan", PLAN, "-o", OUT).code == 0
    both = threading.Barrier(2)

    def wait_for_the_other(path: str) -> None:
        if re.search("/out/_?part-", path):
            both.wait(30)

    planned.fault = wait_for_the_other
    assert mf("plan", "finish", PLAN, OUT).code == 0


@pytest.mark.usefixtures("planned")
def test_what_is_refused(mf: Callable[..., Ran]) -> None:
    again = mf("plan", "s3://photos/in/", "-o", PLAN)
    assert (again.code, again.err.splitlines()[0]) == (8, f"error: {PLAN} is a plan already")
    missing = mf("predict", "--plan", "s3://photos/none", "-o", OUT)
    assert (missing.code, missing.err.splitlines()[0]) == (3, "error: s3://photos/none is not a complete plan")
    assert mf("predict", "--plan", PLAN, "-o", OUT, "--top-k", "3").code == 0
    other = mf("predict", "--plan", PLAN, "-o", OUT)
    assert (other.code, other.err.splitlines()[0]) == (
        8,
        f"error: {OUT} has parts of another run: --top-k 3 instead of --top-k 5",
    )


def test_an_output_that_may_not_be_written(planned: ObjectStore, mf: Callable[..., Ran]) -> None:
    planned.requests.clear()
    planned.fault = lambda path: DENIED if "/out/" in path else None
    ran = mf("predict", "--plan", PLAN, "-o", OUT)
    assert (ran.code, ran.err.splitlines()[0]) == (8, f"error: cannot write {OUT}: access is denied")
    assert not [path for _, path in planned.requests if "/in/" in path]


def test_a_shard_that_changed(planned: ObjectStore, mf: Callable[..., Ran]) -> None:
    planned.put(f"{PLAN}/shard-00001.jsonl", b"{}")
    ran = mf("predict", "--plan", PLAN, "-o", OUT)
    assert ran.code == 3
    assert f"{PLAN}/shard-00001.jsonl has changed since it was planned" in ran.err


def test_a_profile_that_is_not_there(
    store: ObjectStore, mf: Callable[..., Ran], coffee: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mf("plan", coffee, "-o", tmp_path / "plan").code == 0
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    ran = mf("predict", "--plan", tmp_path / "plan", "-o", OUT)
    assert (ran.code, ran.err.splitlines()[0]) == (
        8,
        f"error: cannot write {OUT}: the configuration of AWS cannot be used (ProfileNotFound)",
    )
    assert not store.requests


def test_parts_below_a_folder_are_not_its_own(planned: ObjectStore, mf: Callable[..., Ran]) -> None:
    assert mf("predict", "--plan", PLAN, "-o", OUT, "--shard", "0/2").code == 0
    for shard in (0, 1):
        planned.put(f"{OUT}/other/part-0000{shard}.jsonl", b"")
    assert status(mf)["missing_shards"] == "1"
    assert mf("predict", "--plan", PLAN, "-o", OUT).code == 0
    assert status(mf, "finish")["ok"] == 3


def test_a_store_that_does_not_answer_is_no_other_job(planned: ObjectStore, mf: Callable[..., Ran]) -> None:
    assert mf("predict", "--plan", PLAN, "-o", OUT).code == 0
    planned.fault = lambda path: DENIED if path.endswith("_job.json") else None
    ran = mf("plan", "status", PLAN, OUT)
    assert (ran.code, ran.err.splitlines()[0]) == (8, f"error: cannot read {OUT}/_job.json: access is denied")


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["plan", "status", PLAN, OUT], 3, f"read {PLAN}"),
        (["predict", "--plan", PLAN, "-o", OUT], 3, f"read {PLAN}"),
        (["predict", "--plan", "local", "-o", OUT], 8, f"write {OUT}"),
        (["predict", "a.jpg", "-o", f"{OUT}.csv"], 8, f"write {OUT}.csv"),
    ],
)
@pytest.mark.usefixtures("store")
def test_a_store_that_cannot_be_reached(
    mf: Callable[..., Ran],
    coffee: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    what: str,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("mfcli.store_paths._TIMEOUT_S", 0.5)
    monkeypatch.setattr("mfcli.outputs.upload._TIMEOUT_S", 0.5)
    monkeypatch.chdir(tmp_path)
    assert mf("plan", coffee, "-o", "local").code == 0
    ran = mf(*arguments)
    assert (ran.code, ran.err) == (
        code,
        f"error: cannot {what}: http://127.0.0.1:9 (AWS_ENDPOINT_URL) cannot be reached\n",
    )


@pytest.mark.parametrize("page", [1, 2])
def test_a_listing_that_ends_early_is_no_plan(
    store: ObjectStore, mf: Callable[..., Ran], tmp_path: Path, page: int
) -> None:
    for number in range(1001):
        store.put(f"s3://photos/in/{number:04}.jpg", b"")
    store.fault = lambda path: DENIED if path.count("continuation-token") + 1 == page else None
    ran = mf("plan", "s3://photos/in/", "-o", tmp_path / "plan")
    assert (ran.code, ran.err.splitlines()[0]) == (3, "error: cannot list s3://photos/in/: access is denied")
    store.fault = lambda _: None
    assert mf("plan", "s3://photos/in/", "-o", tmp_path / "plan").code == 0
