"""mf plan: a job in shards gives the rows of one run, whoever writes its parts, and whatever happens meanwhile."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import AFTER_CTRL_C, CHECKOUT, Ran
from mfcli.errors import UsageError
from mfcli.inputs.plan import Plan, format_shards, make_plan, select_shards
from mfcli.inputs.sources import Source
from mfcli.inputs.walk import FileState, read_state
from mfcli.results import Tally

Mf = Callable[..., Ran]
PICTURES = sorted((CHECKOUT / "examples").glob("*.jpg"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: pictures, one that is broken, one with an odd name, and archives of pictures."""
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        shutil.copy(PICTURES[number % 3], photos / f"{number} a.jpg")
    (photos / "4.jpg").write_text("no picture")
    shutil.copy(PICTURES[0], os.fsdecode(os.fsencode(photos) + b"/caf\xe9.jpg"))
    with zipfile.ZipFile("a.zip", "w") as file, tarfile.open("a.tar", "w") as tar:
        for path in PICTURES:
            file.write(path, f"./in/{path.name}")
            tar.add(path, path.name)
    return tmp_path


INPUTS = ["photos", "a.zip", "missing.jpg", "a.tar", "photos/1 a.jpg"]


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def merged(out: Path) -> str:
    return "".join(path.read_text() for path in sorted(out.glob("part-*.jsonl")))


def test_the_parts_are_the_rows_of_one_run(mf: Mf, folder: Path) -> None:
    Path("photos/clip.mp4").touch()
    ran = mf("plan", *INPUTS, "-o", "plan", "--shard-size", "4")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.splitlines() == [
        "note: no such file, and planned all the same: missing.jpg",
        "note: left out: 1 .mp4",
        "note: 14 pictures in 4 shards; mf predict --plan plan -o OUT",
    ]
    assert mf("predict", "--plan", "plan", "-o", "out", "--shards", "0,2-3", "-q").code == 5
    status = rows(mf("plan", "status", "plan", "out", "--format", "jsonl").out)[0]
    assert status.pop("images_per_s") > 0
    assert status == {"inputs": 14, "shards": 4, "done": 3, "missing_shards": "1", "ok": 9, "failed": 1, "changed": 0}
    ran = mf("plan", "finish", "plan", "out")
    hint = "hint: mf predict --plan plan --output out --shards 1\n"
    assert (ran.code, ran.err) == (9, f"error: 1 of 4 parts are missing\n{hint}")
    ran = mf("predict", "--plan", "plan", "-o", "out")
    assert ran.err.splitlines() == [
        "note: 4 pictures: 3 classified, 1 failed; out/part-00001.jsonl",
        "note: 14 pictures: 12 classified, 2 failed; out",
    ]
    assert mf("plan", "finish", "plan", "out", "--format", "json").code == 0
    assert json.loads((folder / "out/_summary.json").read_text())["inputs"] == 14
    assert (folder / "out/_SUCCESS").exists()
    assert merged(folder / "out") == mf("predict", *INPUTS, "--format", "jsonl").out


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["plan", "photoz", "-o", "plan"], 3, "error: no such file: photoz\nhint: did you mean photos?"),
        (["plan", "nothing", "-o", "plan"], 3, "error: no such file: nothing\n"),
        (["plan", "photos", "photoz/1.jpg", "-o", "plan"], 0, "photoz/1.jpg; did you mean photos?"),
        (["plan", "stauts", "plan", "out"], 2, "hint: mf plan status --help"),
        (["plan", "stat*", "-o", "plan"], 0, "note: 1 picture in 1 shard;"),
        (["plan", "photos/4.jpg", "-o", "plan"], 0, "note: 1 picture in 1 shard;"),
        (["predict", "photoz"], 6, "note: photoz: did you mean photos?"),
    ],
)
def test_misspelt_names_are_told(mf: Mf, arguments: list[str], code: int, words: str) -> None:
    shutil.copy(PICTURES[0], "stats.jpg")
    ran = mf(*arguments)
    assert (ran.code, words in ran.err, Path("plan").exists()) == (code, True, code == 0), ran.err


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("name", "is_doubtful"), [("photos/0 a.jpg", False), ("plain.png", True)])
def test_the_limits_of_the_model_are_told_of_doubtful_answers(mf: Mf, name: str, is_doubtful: bool) -> None:
    Image.new("RGB", (80, 80), (90, 120, 150)).save("plain.png")
    assert mf("plan", name, "-o", "plan", "-q").code == 0
    ran = mf("predict", "--plan", "plan", "-o", "out")
    assert (ran.code, "answered by the small bundled model" in ran.err) == (0, is_doubtful)


@pytest.mark.usefixtures("folder")
def test_finish_says_that_nothing_was_classified(mf: Mf) -> None:
    assert mf("plan", "photos/4.jpg", "-o", "plan", "-q").code == 0
    assert mf("predict", "--plan", "plan", "-o", "out", "-q").code == 6
    ran = mf("plan", "finish", "plan", "out")
    assert (ran.code, ran.err, Path("out/_SUCCESS").exists()) == (6, "note: none of 1 picture was classified\n", True)


def test_parquet_in_and_out(mf: Mf, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"image": [path.read_bytes() for path in PICTURES], "id": [7, 8, 9]})
    parquet.write_table(table, "p.parquet", row_group_size=2)
    assert mf("plan", "p.parquet", "photos", "-o", "plan", "--shard-size", "2", "-q").code == 0
    command = ["predict", "--plan", "plan", "-o", "out", "--keep", "id", "-q"]
    for worker in range(3):
        assert mf(*command, "--format", "parquet", "--shard", f"{worker}/3", "--allow-failures").code == 0
    monkeypatch.setattr("mfcli.results.PictureResult.from_dict", lambda *_: pytest.fail("read more than names"))
    assert mf("plan", "finish", "plan", "out").code == 0
    found = [row for path in sorted((folder / "out").glob("part-*")) for row in parquet.read_table(path).to_pylist()]
    assert [(row["member"], (row["kept"] or {}).get("id")) for row in found[:4]] == [
        ("0", "7"),
        ("1", "8"),
        ("2", "9"),
        (None, None),
    ]
    assert len(found) == 9


def test_no_picture_is_opened_by_planning(mf: Mf, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfcli.inputs.sources.Source.open", lambda _: pytest.fail("opened"))
    assert mf("plan", *INPUTS, "-o", "plan").code == 0
    assert next(Plan.read(folder / "plan").names(0)) == ("photos/0 a.jpg", None)


def test_what_changed_since_has_its_row(mf: Mf, folder: Path) -> None:
    assert mf("plan", *INPUTS, "-o", "plan", "-q").code == 0
    shutil.rmtree("photos")
    Path("photos").mkdir()
    shutil.copy(PICTURES[2], "photos/0 a.jpg")
    Path("missing.jpg").mkdir()
    shutil.copy(PICTURES[0], "missing.jpg/new.jpg")
    Path("a.zip").write_text("no zip")
    with tarfile.open("a.tar", "w") as tar:
        tar.add(PICTURES[0], PICTURES[0].name)
        tar.add(PICTURES[0], "new.jpg")
    ran = mf("predict", "--plan", "plan", "-o", "out")
    assert ran.code == 5
    assert "note: 14 pictures: 2 classified, 12 failed, 7 changed since they were planned; out/part-" in ran.err
    assert json.loads(mf("plan", "finish", "plan", "out", "--format", "jsonl").out)["changed"] == 7
    assert json.loads((folder / "out/_summary.json").read_text())["changed"] == 7
    found = rows(merged(folder / "out"))
    assert [row["error"] and row["error"]["code"] for row in found] == [
        None,
        *["not_found"] * 5,
        *["decode"] * 3,
        "unsupported",
        None,
        *["not_found"] * 3,
    ]


@pytest.mark.usefixtures("folder")
def test_a_shard_reads_nothing_of_the_others(mf: Mf) -> None:
    assert mf("plan", *INPUTS, "-o", "plan", "--shard-size", "2", "-q").code == 0
    assert mf("predict", "--plan", "plan", "-o", "out", "--shards", "0-2,4-6", "-q").code == 5
    opened: list[str] = []
    is_over = False

    def note_opened(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and not is_over and isinstance(arguments[0], str):
            opened.append(os.path.relpath(arguments[0]))

    sys.addaudithook(note_opened)  # for good
    assert mf("predict", "--plan", "plan", "-o", "out", "--shards", "3", "-q").code == 0
    is_over = True
    touched = {name for name in opened if name.startswith(("plan", "out/part", "photos", "a."))}
    assert touched == {"plan/plan.json", "plan/shard-00003.jsonl", "a.zip"}


def test_another_run_plan_or_format_is_refused(mf: Mf, folder: Path) -> None:
    for name in ("photos", "a.zip"):
        assert mf("plan", name, "-o", f"plan-{name}", "-q").code == 0
    command = ["predict", "--plan", "plan-photos", "-o", "out"]
    assert mf(*command, "-q").code == 5
    before = merged(folder / "out")
    for other, what, hint in (
        ([*command, "-k", "2"], "of another run: --top-k 5 instead of --top-k 2", "use the settings that"),
        ([*command, "--format", "parquet"], "in jsonl", "--format jsonl, or another folder: --output FOLDER"),
        (["predict", "--plan", "plan-a.zip", "-o", "out"], "of another plan", "name another folder"),
        (["plan", "status", "plan-a.zip", "out"], "of another plan", "name another folder"),
        (["plan", "finish", "plan-a.zip", "out"], "of another plan", "name another folder"),
    ):
        ran = mf(*other)
        assert (ran.code, ran.err.startswith(f"error: out has parts {what}\nhint: {hint}")) == (8, True), ran.err
    ran = mf("predict", "--plan", "plan-photos", "-o", "photos")
    assert (ran.code, ran.err.splitlines()[0]) == (8, "error: photos has other files")
    assert merged(folder / "out") == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[:-1], "row 6 of out/part-00000.jsonl is nothing, and the plan has "),
        (lambda lines: [*lines, lines[0]], "row 7 of out/part-00000.jsonl is photos/0 a.jpg, and the plan has nothing"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "row 1 of out/part-00000.jsonl is photos/1 a.jpg, and"),
        (
            lambda lines: [lines[0], re.sub('"run":"[0-9a-f]+"', '"run":"0"', lines[1]), *lines[2:]],
            "row 2 of out/part-00000.jsonl belongs to another run",
        ),
        (lambda _: [], "row 1 of out/part-00000.jsonl is nothing, and the plan has photos/0 a.jpg"),
    ],
)
def test_finish_finds_a_damaged_part(
    damage: Callable[[list[str]], list[str]], message: str, mf: Mf, folder: Path
) -> None:
    assert mf("plan", "photos", "-o", "plan", "-q").code == 0
    assert mf("predict", "--plan", "plan", "-o", "out", "-q").code == 5
    part = folder / "out" / "part-00000.jsonl"
    part.write_text("".join(damage(part.read_text().splitlines(keepends=True))))
    ran = mf("plan", "finish", "plan", "out")
    assert ran.code == 9
    assert ran.err.startswith(f"error: {message}")
    assert not (folder / "out/_SUCCESS").exists()


def test_a_state_that_is_listed_again_is_the_new_one(tmp_path: Path) -> None:
    for etag in ("a", "b"):
        sources = [Source("s3://photos/1.jpg", state=FileState(3, etag=etag))]
        (tmp_path / ".unfinished").touch()
        plan = make_plan(sources, tmp_path, 10, lambda _: None)
        assert f'"size_bytes":3,"etag":"{etag}"' in (tmp_path / "shard-00000.jsonl").read_text()
    assert list(plan.names(0)) == [("s3://photos/1.jpg", None)]


def test_the_progress_is_that_of_all_shards(mf: Mf, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mf("plan", "photos", "-o", folder / "plan", "--shard-size", "4", "-q").code == 0
    events: list[Any] = []
    monkeypatch.setattr("mfcli.cli.progress.StderrProgress.__call__", lambda _, event: events.append(event))
    assert mf("predict", "--plan", "plan", "-o", "out").code == 5
    assert mf("plan", "finish", "plan", "out").code == 0
    tallies = [(event.done, event.failed) for event in events if isinstance(event, Tally)]
    assert list(dict.fromkeys(tallies)) == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (6, 1), (6, 0)]


def test_finish_finds_a_truncated_part_of_parquet(mf: Mf, folder: Path) -> None:
    pytest.importorskip("pyarrow")
    assert mf("plan", "photos", "-o", "plan", "-q").code == 0
    assert mf("predict", "--plan", "plan", "-o", "out", "--format", "parquet", "-q").code == 5
    part = folder / "out" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    ran = mf("plan", "finish", "plan", "out")
    error, hint = ran.err.splitlines()
    assert (ran.code, hint) == (9, "hint: delete it, and predict it again: --shards 0")
    assert error.startswith("error: cannot read out/part-00000.parquet: ")


def test_a_damaged_plan_is_refused(mf: Mf, folder: Path) -> None:
    ran = mf("predict", "--plan", "photos", "-o", "out")
    assert (ran.code, ran.err.splitlines()[0]) == (3, "error: photos is not a complete plan")
    assert mf("plan", "photos", "-o", "plan", "-q").code == 0
    ran = mf("plan", "photos", "-o", "plan", "-q")
    assert (ran.code, ran.err.splitlines()[0]) == (8, "error: plan is a plan already")
    assert mf("plan", "photos", "-o", "photos").err.startswith("error: photos is not empty")
    with (folder / "plan/shard-00000.jsonl").open("a") as file:
        file.write("{}\n")
    ran = mf("predict", "--plan", "plan", "-o", "out", "-q")
    assert (ran.code, ran.err.splitlines()[0]) == (
        3,
        "error: plan/shard-00000.jsonl has changed since it was planned",
    )
    assert not list((folder / "out").glob("*part-*"))


def test_an_interrupted_plan_goes_on(mf: Mf, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["plan", "photos", "a.tar", "-o", "plan", "--shard-size", "3", "-q"]
    assert mf(*command).code == 0
    whole = {path.name: path.read_bytes() for path in (folder / "plan").iterdir()}
    (folder / "plan" / "plan.json").unlink()
    (folder / "plan" / "shard-00001.jsonl").unlink()
    for name in (".unfinished", "shard-00002.jsonl", "shard-00009.jsonl", ".shard-00001.jsonl.1-ab"):
        (folder / "plan" / name).write_text("left")
    seen: list[str] = []

    def note_seen(path: str) -> FileState | None:
        seen.append(path)
        return read_state(path)

    monkeypatch.setattr("mfcli.inputs.plan.read_state", note_seen)
    assert mf(*command).code == 0
    assert {path.name: path.read_bytes() for path in (folder / "plan").iterdir()} == whole
    assert [name.rpartition("/")[2] for name in seen] == ["3 a.jpg", "4.jpg", "caf\udce9.jpg", *["a.tar"] * 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "plan", "photos", "-o", "out"], "--plan has the inputs already"),
        (["--plan", "plan", "-o", "out", "--resume"], "a part of a plan that is there is done"),
        (["--plan", "plan"], "a plan has a folder of parts in jsonl or parquet"),
        (["--plan", "plan", "-o", "out", "--format", "csv"], "a plan has a folder of parts in jsonl or parquet"),
        (["--plan", "plan", "-o", "out.csv"], "out.csv is to be a folder of parts in jsonl, not a file"),
        (["photos", "--shard", "0/2"], "--shard, --shards and --ray are about a plan"),
        (["photos", "--ray", "local"], "--shard, --shards and --ray are about a plan"),
        (
            ["--plan", "plan", "-o", "out", "--ray", "ray://host:1"],
            "--ray ray://host:1 is not the address of a cluster that this machine belongs to",
        ),
        (
            ["--plan", "plan", "-o", "out", "--ray", "local", "--device", "cuda:1"],
            "--device cuda:1: Ray chooses the GPU of each actor",
        ),
        (["--plan", "plan", "-o", "out", "--shard", "2/2"], "--shard 2/2 chooses none of the shards 0 to 0"),
        (["--plan", "plan", "-o", "out", "--shard", "1"], "--shard 1 is not I/N: every N-th shard, from I on"),
    ],
)
def test_what_does_not_go_together(arguments: list[str], message: str, mf: Mf, folder: Path) -> None:
    assert mf("plan", "photos", "-o", "plan", "-q").code == 0
    ran = mf("predict", *arguments)
    assert (ran.code, ran.err.splitlines()[0]) == (2, f"error: {message}")
    assert not (folder / "out").exists()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "command",
    [
        ["plan", "photos", "-o", "s3://b/x"],
        ["plan", "status", "s3://b/x", "out"],
        ["plan", "finish", "plan", "s3://b/x"],
        ["predict", "--plan", "s3://b/x", "-o", "out"],
        ["predict", "--plan", "plan", "-o", "s3://b/x"],
    ],
)
def test_stores_are_refused_while_offline(command: list[str], mf: Mf, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mf("plan", "photos", "-o", "plan", "-q").code == 0
    monkeypatch.setenv("MF_OFFLINE", "1")
    ran = mf(*command)
    assert (ran.code, ran.err.splitlines()[0]) == (8, "error: s3://b/x cannot be used while offline")


@pytest.mark.usefixtures("folder")
def test_names_that_are_all_missing_are_no_plan(mf: Mf) -> None:
    ran = mf("plan", *[f"{number}.jpg" for number in range(12)], "-o", "plan")
    assert (ran.code, ran.err.splitlines()[0][-11:]) == (3, " 9.jpg, ...")


@pytest.mark.usefixtures("folder")
def test_parts_that_went_elsewhere_are_missed(mf: Mf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfcli.tasks.distribute.Cluster.check", lambda _: None)
    monkeypatch.setattr("mfcli.tasks.distribute.distribute", lambda make_worker, *_: pickle.dumps(make_worker))
    assert mf("plan", "photos", "-o", "plan", "--shard-size", "2", "-q").code == 0
    ran = mf("predict", "--plan", "plan", "-o", "out", "--ray", "local")
    assert (ran.code, ran.err.splitlines()[0]) == (
        8,
        "error: 3 parts were made, but are not in out on this machine",
    )


@pytest.mark.parametrize(
    ("shard", "shards", "chosen"),
    [
        (None, None, [0, 1, 2, 3, 4]),
        ("1/2", None, [1, 3]),
        ("4/9", None, [4]),
        ("7/9", None, []),
        (None, "3,0-1,1", [0, 1, 3]),
        ("1/2", "3", None),
        ("2/2", None, None),
        ("-1/2", None, None),
        ("1", None, None),
        (None, "5", None),
        (None, "3-1", None),
        (None, "0-99999999999", None),
        (None, "0,3-1", None),
        (None, "1-2-3", None),
        (None, "", None),
        (None, "x", None),
    ],
)
def test_shards_are_chosen(shard: str | None, shards: str | None, chosen: list[int] | None) -> None:
    if chosen is None:
        with pytest.raises(UsageError):
            select_shards(5, shard=shard, shards=shards)
    else:
        assert select_shards(5, shard=shard, shards=shards) == chosen


def test_shards_are_written_as_they_are_read() -> None:
    assert format_shards([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert select_shards(9, shards="0-2,5,7-8") == [0, 1, 2, 5, 7, 8]


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_workers_that_are_ended_leave_whole_parts(end: signal.Signals, mf: Mf, folder: Path) -> None:
    inputs = INPUTS * 15
    assert mf("plan", *inputs, "-o", "plan", "--shard-size", "20", "-q").code == 0
    command = [sys.executable, "-m", "mfcli", "predict", "--plan", "plan", "-o", "out", "-q"]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not list((folder / "out").glob("part-00001*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(end)
    assert process.wait(60) in ((-9,) if end == signal.SIGKILL else AFTER_CTRL_C)
    assert 2 <= len(list((folder / "out").glob("part-*"))) < 11
    both = [subprocess.Popen(command) for _ in range(2)]  # with all shards in common
    assert [process.wait(120) for process in both] == [5, 5]
    assert mf("plan", "finish", "plan", "out").code == 0
    assert not list((folder / "out").glob(".part-*"))
    assert merged(folder / "out") == mf("predict", *inputs, "--format", "jsonl").out
