"""Folders of parts that several processes write, some of which are killed."""

import errno
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from mfcli.errors import EngineError, OutputError
from mfcli.outputs.json import JsonLinesWriter
from mfcli.outputs.parts import PartFolder
from mfcli.runs import RunSettings

PLAN, RUN = "ab" * 32, RunSettings("9f2c", {})


@pytest.fixture
def parts(tmp_path: Path) -> PartFolder:
    folder = PartFolder(tmp_path / "out", "jsonl")
    folder.prepare()
    folder.claim(PLAN, RUN)
    return folder


def test_what_a_killed_copy_has_left_is_deleted(parts: PartFolder) -> None:
    copy, other = pickle.loads(pickle.dumps(parts)), PartFolder(parts.folder, "jsonl")
    left = copy.open(3, JsonLinesWriter), other.open(3, JsonLinesWriter)
    for opened in left:
        opened.__enter__()
    parts.drop_unfinished()
    assert len(list(Path(parts.folder).glob(".part-*"))) == 1  # the other's
    left[1].__exit__(None, None, None)
    assert parts.is_done(3)


def test_a_part_that_ends_each_process_is_given_up(parts: PartFolder) -> None:
    opened = [parts.open(3, JsonLinesWriter) for _ in range(10)]
    for number, attempt in enumerate(opened):
        parts.check_attempts(3)
        attempt.__enter__()
        assert len(list(Path(parts.folder).glob(".part-*"))) == number + 1
    parts.check_attempts(33)
    with pytest.raises(EngineError, match=r"10 processes were killed while they made .*part-00003.jsonl"):
        parts.check_attempts(3)


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
    assert PartFolder.find(tmp_path, PLAN).list_done(2) == {0}


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    for _ in range(2):
        PartFolder(tmp_path, "jsonl").claim(PLAN, RUN)
    with pytest.raises(OutputError, match="parts of another plan"):
        PartFolder(tmp_path, "jsonl").claim("cd" * 32, RUN)
    assert [path.name for path in tmp_path.iterdir()] == ["_job.json"]


@pytest.mark.parametrize("job", ["", "[]", '{"plan": "PLAN"}'])
def test_a_damaged_job_is_none(job: str, tmp_path: Path) -> None:
    (tmp_path / "_job.json").write_text(job.replace("PLAN", PLAN))
    with pytest.raises(OutputError, match="has no parts"):
        PartFolder.find(tmp_path, PLAN)


def test_finishing_deletes_what_was_left(parts: PartFolder) -> None:
    for name in (".part-00000.jsonl.1-ab", "._part-00000.json.1-ab", "._job.json.host.1"):
        (parts.folder / name).touch()
    parts.finish({})
    assert not list(Path(parts.folder).glob(".*"))
