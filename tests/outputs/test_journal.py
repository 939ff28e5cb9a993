"""Output files: whole or as they were, and journals that go on after any cut."""

import fcntl
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mfcli.errors import MfError, OutputError
from mfcli.outputs import files
from mfcli.outputs.files import atomic_output, refuse_existing
from mfcli.outputs.journal import Journal
from mfcli.results import PREDICT_SCHEMA
from mfcli.runs import RowStatus, RunSettings

RUN = "0123456789abcdef"
SETTINGS = RunSettings(RUN, {})


def row(name: str, status: Any = "ok", run: str = RUN, **more: Any) -> str:
    fields = {"schema": PREDICT_SCHEMA, "input": name, "input_b64": None, "member": None, "status": status, "run": run}
    return json.dumps(fields | more, separators=(",", ":")) + "\n"


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with atomic_output(path) as stream:
        stream.write("a\r\nb\n")
        assert not path.exists()
    assert path.read_bytes() == b"a\r\nb\n"
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(OutputError, match="No space left"), atomic_output(path):
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]


def test_a_link_stays_a_link_and_the_mode_is_kept(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "real.csv").chmod(0o600)
    (tmp_path / "link.csv").symlink_to("real.csv")
    with atomic_output(tmp_path / "link.csv") as stream:
        stream.write("new")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "new"
    assert (tmp_path / "real.csv").stat().st_mode & 0o777 == 0o600


def test_a_file_that_came_into_being_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def both() -> None:
        with atomic_output(tmp_path / "out.csv", replace=False) as stream:
            stream.write("mine")
            (tmp_path / "out.csv").write_text("theirs")

    with pytest.raises(OutputError, match="was created while this run was in progress") as caught:
        both()
    assert (tmp_path / "out.csv").read_text() == "theirs"
    (kept,) = set(tmp_path.iterdir()) - {tmp_path / "out.csv"}
    assert kept.read_text() == "mine"
    assert str(kept) in str(caught.value.hint)


@pytest.mark.parametrize("name", ["字" * 83 + ".csv", "a" * 251 + ".csv"])
def test_the_longest_names_are_written(name: str, tmp_path: Path) -> None:
    with atomic_output(tmp_path / name) as stream:
        stream.write("x")
    assert (tmp_path / name).read_text() == "x"


def test_a_name_that_cannot_be_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write .*: File name too long") as caught:
        refuse_existing(tmp_path / ("a" * 245 + ".csv"), resumable=True)
    assert str(caught.value.hint).startswith("choose a shorter name: output=FILE")


def test_a_device_is_written_directly() -> None:
    with atomic_output(Path("/dev/null")) as stream:
        stream.write("x")
    assert not Path("/dev/null").is_file()


def test_a_pipe_gets_what_was_written_before_an_interrupt() -> None:
    reader, writer = os.pipe()

    def interrupted() -> None:
        with atomic_output(Path(f"/dev/fd/{writer}")) as stream:
            stream.write("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.read(reader, 9) == b"x"
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(("name", "message"), [("there.csv", "exists"), (".", "folder"), ("no/x.csv", "no folder")])
def test_what_cannot_be_written_is_refused_at_once(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("x")
    with pytest.raises(OutputError, match=message):
        refuse_existing(tmp_path / name)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 10**6), statuses=st.lists(st.sampled_from(["ok", "error"]), min_size=1, max_size=8))
def test_a_journal_cut_anywhere_goes_on_to_the_same_bytes(cut: int, statuses: list[str], tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    rows = [row(f"{number}é.jpg", status) for number, status in enumerate(statuses)]
    whole = "".join(rows).encode()
    path.write_bytes(whole[: cut % (len(whole) + 1)])
    journal = Journal(path, SETTINGS)
    for number, line in enumerate(rows):
        if journal.take_status(f"{number}é.jpg".encode(), None) is RowStatus.NEW:
            journal.rows.write(line)
    journal.close()
    assert path.read_bytes() == whole


def test_the_same_input_twice_is_finished_twice(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(row("a.jpg") + row("a.jpg") + row("b.zip", member="a.jpg") + row("x", input_b64="/w=="))
    journal = Journal(path, SETTINGS)
    assert [journal.take_status(b"a.jpg", None) for _ in range(3)] == [RowStatus.OK, RowStatus.OK, RowStatus.NEW]
    assert journal.take_status(b"b.zip", None) is RowStatus.NEW
    assert journal.take_status(b"b.zip", "a.jpg") is RowStatus.OK
    assert journal.take_status(b"\xff", None) is RowStatus.OK
    journal.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (row("a", run="ffffffffffffffff"), "belongs to a different run: other settings, or another version of mf"),
        ("hello\nworld\n", "line 1 of .* is not a row"),
        (row("a") + '{"schema":"other/1"}\n' + row("b"), "line 2 of .* is not a row"),
        ("[1]\n" + row("b"), "line 1 of .* is not a row"),
        ("my precious notes\n", "line 1 of .* is not a row"),
        ('{"a":1}', "line 1 of .* is not a row"),
        (row("a") + row("b").replace('"input":"b"', '"input":5'), "line 2 of .* is not a row"),
        (row("a", input_b64="!!!") + row("b"), "line 1 of .* is not a row"),
        (row("a", member=3), "line 1 of .* is not a row"),
        (row("a", status=[]), "line 1 of .* is not a row"),
        ("[" * 100_000 + "\n", "line 1 of .* is not a row"),
    ],
)
def test_a_foreign_journal_is_refused_and_left_alone(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(text)
    with pytest.raises(OutputError, match=message):
        Journal(path, SETTINGS)
    assert path.read_text() == text


def test_one_writer_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl.partial"
    journal = Journal(path, SETTINGS)
    journal.rows.write(row("a"))
    with pytest.raises(OutputError, match="being written by another"):
        Journal(path, SETTINGS)
    with pytest.raises(OutputError, match="being written by another"):
        refuse_existing(tmp_path / "out.jsonl", resumable=True)
    journal.close()
    Journal(path, SETTINGS).close()
    with pytest.raises(OutputError, match="an unfinished run"):
        refuse_existing(tmp_path / "out.jsonl", resumable=True)
    path.unlink()
    monkeypatch.setattr(files, "has_content", lambda file: file == path)  # it is finished between two looks
    with pytest.raises(OutputError, match="an unfinished run"):
        refuse_existing(tmp_path / "out.jsonl", resumable=True)


def test_retried_rows_take_the_failed_ones_places(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(row("a") + row("b", "error") + row("c") + row("b", "error") + row("d", "error"))
    journal = Journal(path, SETTINGS, retry_failed=True)
    assert journal.take_status(b"b", None) is RowStatus.FAILED
    assert journal.retries is not None
    journal.retries.write(row("b", "ok", n=1))
    journal.retries.write(row("b", "error", n=2))
    journal.rows.write(row("e"))
    journal.close()
    assert path.read_text() == row("a") + row("b", n=1) + row("c") + row("b", "error", n=2) + row("d", "error") + row(
        "e"
    )
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_retried_rows_of_a_killed_run_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(row("a", "error") + row("b", "error"))
    (tmp_path / ".out.jsonl.retry").write_text(row("a", "ok") + row("b", "ok")[:30])
    journal = Journal(path, SETTINGS)
    assert journal.take_status(b"a", None) is RowStatus.OK
    assert journal.take_status(b"b", None) is RowStatus.FAILED
    journal.close()
    assert path.read_text() == row("a") + row("b", "error")


OTHER = {"run": "f" * 16, "model": "m", "weights_sha256": "w"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_k": 5, "exif": False}, "top_k=3 instead of top_k=5, exif=True instead of exif=False"),
        ({"labels": "abc"}, "other labels"),
        ({"model": "n", "top_k": 5}, "model=m instead of model=n"),
        ({"weights_sha256": "v", "top_k": 5}, "other weights of m, SHA-256 w"),
        ({"artifact": "b"}, "another version of mf"),
    ],
)
def test_the_settings_of_another_run_are_named(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    theirs = {"model": "m", "weights_sha256": "w", "artifact": "a", "labels": "xyz", "top_k": 3, "exif": True}
    journal = Journal(path, RunSettings("f" * 16, theirs))
    journal.begin()
    journal.rows.write(row("a", **OTHER))
    journal.close()
    with pytest.raises(OutputError, match=f"(?m)belongs to a different run: {re.escape(message)}$"):
        Journal(path, RunSettings(RUN, theirs | values))


@pytest.mark.parametrize("kept", [None, "", "[" * 100_000, '{"run":"0","values":{}}'])
def test_without_its_settings_a_run_is_told_by_its_rows(kept: str | None, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(row("a", **OTHER))
    if kept is not None:
        (tmp_path / ".out.jsonl.run").write_text(kept)
    for values, message in (
        ({"model": "n", "weights_sha256": "w"}, "model=m instead of model=n"),
        ({"model": "m", "weights_sha256": "w", "top_k": 3}, "other settings, or another version of mf"),
    ):
        with pytest.raises(OutputError, match=f"(?m)belongs to a different run: {message}$"):
            Journal(path, RunSettings(RUN, values))


def test_the_settings_go_with_a_file_that_got_no_row(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.jsonl", SETTINGS)
    journal.begin()
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_an_old_journal_is_kept_until_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(row("old"))
    journal = Journal(path, SETTINGS, overwrite=True)
    journal.close()
    assert path.read_text() == row("old")
    journal = Journal(path, SETTINGS, overwrite=True)
    journal.begin()
    journal.rows.write(row("new"))
    journal.close()
    assert path.read_text() == row("new")


def test_an_old_file_is_kept_where_nothing_was_written(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")

    def fail(error: BaseException, text: str) -> None:
        with atomic_output(path) as stream:
            stream.write(text)
            raise error

    for error, text in ((MfError("none"), ""), (KeyboardInterrupt(), ""), (ZeroDivisionError(), "half")):
        with pytest.raises(type(error)):
            fail(error, text)
        assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.csv"]


def test_a_merge_keeps_link_and_mode_and_minds_no_left_over(tmp_path: Path) -> None:
    path = tmp_path / "link.jsonl"
    path.symlink_to("real.jsonl")
    (tmp_path / "real.jsonl").write_text(row("a", "error"))
    (tmp_path / "real.jsonl").chmod(0o600)
    (tmp_path / f".real.jsonl.{os.getpid()}.part").write_text("left over")
    journal = Journal(path, SETTINGS, retry_failed=True)
    assert journal.retries is not None
    journal.retries.write(row("a"))
    journal.close()
    assert path.is_symlink()
    assert (tmp_path / "real.jsonl").read_text() == row("a")
    assert (tmp_path / "real.jsonl").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["link.jsonl", "real.jsonl"]


def test_a_file_that_was_replaced_before_its_lock_was_had_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(row("old"))
    flock = fcntl.flock
    calls: list[Any] = []

    def replace_first(file: Any, operation: int) -> None:
        if not calls:
            (tmp_path / "new").write_text(row("new"))
            (tmp_path / "new").replace(path)
        calls.append(operation)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", replace_first)
    journal = Journal(path, SETTINGS)
    journal.rows.write(row("more"))
    journal.close()
    assert len(calls) == 2
    assert path.read_text() == row("new") + row("more")
