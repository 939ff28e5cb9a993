"""Folders of parts that several processes write, some of which are killed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mfcli.outputs.parts import PartFolder
from mfcli.runs import RunSettings

PLAN, RUN = "ab" * 32, RunSettings("9f2c", {})


@pytest.fixture
def parts(tmp_path: Path) -> PartFolder:
    folder = PartFolder(tmp_path / "out", "jsonl")
    folder.prepare()
    folder.claim(PLAN, RUN)
    return folder


def test_a_part_that_another_process_makes_meanwhile_is_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_folder = Path.iterdir

    def list_late(folder: Path) -> Iterator[Path]:
        other = PartFolder(folder, "jsonl")
        monkeypatch.setattr(Path, "iterdir", list_folder)
        other.claim(PLAN, RUN)
        other.path(0).touch()
        return list_folder(folder)

    monkeypatch.setattr(Path, "iterdir", list_late)
    PartFolder(tmp_path, "jsonl").claim(PLAN, RUN)


def test_finishing_deletes_what_was_left(parts: PartFolder) -> None:
    for name in (".part-00000.jsonl.1-ab", "._part-00000.json.1-ab", "._job.json.host.1"):
        (parts.folder / name).touch()
    parts.finish({})
    assert not list(Path(parts.folder).glob(".*"))
