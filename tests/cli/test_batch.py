"""Many pictures through the command line: output files, resuming after any end, failures, and how it is told."""

import base64
import contextlib
import csv
import io
import json
import os
import random
import resource
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
from deterministic import picture

Mf = Callable[..., Ran]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sixty small pictures, every tenth of them broken."""
    folder = tmp_path_factory.mktemp("many")
    paths = [folder / f"{number:03}.png" for number in range(60)]
    for number, path in enumerate(paths):
        picture(60 + number, 64, name=str(number)).save(path)
        if number % 10 == 5:
            path.write_bytes(path.read_bytes()[:100])
    return paths


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_a_killed_run_has_left_is_named(mf: Mf, coffee: Path, tmp_path: Path) -> None:
    left, other = (tmp_path / f".{name}.2147483646.part" for name in ("x.csv", "y.csv"))
    mine = tmp_path / f".x.csv.{os.getpid()}.part"
    for path in (left, other, mine):
        path.touch()
    (tmp_path / "linked").mkdir()
    link = tmp_path / "linked" / "z.csv"
    link.symlink_to(tmp_path / "x.csv")
    ran = mf("predict", coffee, "-o", link)
    assert f"note: {left} is left of a run that was killed" in ran.err
    assert [str(path) in ran.err for path in (other, mine)] == [False, False]
    assert str(left) not in mf("convert", tmp_path / "x.csv", "-o", tmp_path / "x.csv", "--overwrite", "-q").err


@pytest.mark.parametrize("options", [(), ("-q",)])
def test_libraries_write_nothing_under_quiet(options: tuple[str, ...], mf: Mf, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3)).save(
        file, "TIFF", compression="tiff_adobe_deflate"
    )
    data = bytearray(file.getvalue())
    data[300:600] = bytes(byte ^ 0x5A for byte in data[300:600])
    (tmp_path / "a.tif").write_bytes(data)
    ran = mf("predict", tmp_path / "a.tif", "--format", "csv", *options)
    assert "cannot be decoded" in ran.out
    assert (ran.err == "") is bool(options)  # without -q, libtiff says what is wrong
    assert "--top-k 0" in mf("predict", tmp_path / "a.tif", "--top-k", "0", *options).err


def test_cells_for_spreadsheets(mf: Mf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "=1+1.jpg").touch()
    (tmp_path / "\x1b[2J.jpg").touch()
    ran = mf("predict", ".", "=1+1.jpg", "--format", "csv", "--csv-safe", "--no-header")
    assert [line.partition(",")[0] for line in ran.out.splitlines()] == [r"./\x1b[2J.jpg", "./=1+1.jpg", "'=1+1.jpg"]
    assert mf("predict", "=1+1.jpg", "--csv-safe", "--format", "json").code == 2


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "txt"])
def test_the_suffix_names_the_format(suffix: str, mf: Mf, many: list[Path], tmp_path: Path) -> None:
    path = tmp_path / f"out.{suffix}"
    ran = mf("predict", *many, "-o", path, "-q")
    assert (ran.code, ran.out, ran.err) == (5, "", "")
    text = path.read_text()
    match suffix:
        case "jsonl":
            found = [(row["input"], row["status"]) for row in rows(path)]
        case "json":
            document = json.loads(text)
            assert document["summary"] == {"inputs": 60, "ok": 54, "failed": 6, "complete": True, "left_out": {}}
            found = [(row["input"], row["status"]) for row in document["results"]]
        case "csv" | "tsv":
            reader = csv.DictReader(text.splitlines(), delimiter="," if suffix == "csv" else "\t")
            found = [(row["input"], row["status"]) for row in reader]
        case _:
            assert text.splitlines()[-1] == "60 pictures: 54 classified, 6 failed"
            return
    assert found == [(str(p), "error" if number % 10 == 5 else "ok") for number, p in enumerate(many)]


@pytest.mark.slow
@pytest.mark.parametrize("wishes", [["-b", "1"], ["-b", "3", "-j", "1"], ["-b", "16", "-j", "5"], ["--threads", "1"]])
def test_answers_do_not_depend_on_batches_and_threads(wishes: list[str], mf: Mf, many: list[Path]) -> None:
    plain = mf("predict", *many, "--format", "jsonl", "-q")
    assert mf("predict", *many, "--format", "jsonl", "-q", *wishes).out == plain.out
    one = mf("predict", many[0], "--format", "jsonl", "-q")
    assert one.out == plain.out.splitlines(keepends=True)[0]


def test_many_pictures_have_a_line_each(mf: Mf, many: list[Path]) -> None:
    lines = mf("predict", *many, "-q", "-k", "2").out.splitlines()
    assert len(lines) == 61
    assert lines[0].startswith(f"{many[0]}  ")
    assert "is truncated" in lines[5]


def test_a_few_have_a_table_each(mf: Mf, many: list[Path]) -> None:
    assert mf("predict", *many[:3], "-q").out.count("╭") == 3


def test_an_existing_file_is_refused_before_any_work(mf: Mf, many: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("precious")
    ran = mf("predict", *many, "-o", path, "--model", "no_such_model")
    assert ran.code == 8
    assert ran.err == f"error: {path} exists\nhint: --overwrite replaces it; --resume goes on with it\n"
    assert path.read_text() == "precious"
    assert mf("predict", many[0], "-o", path, "--overwrite").code == 0
    assert len(rows(path)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "--resume, --retry-failed and --overwrite are about a file"),
        (["--no-header", "-o", "x.json"], "--no-header is about csv and tsv"),
        (["--format", "csv", "--template", "{label}"], "--template and --format exclude each other"),
        (["--resume", "--overwrite", "-o", "x.jsonl"], "--overwrite and --resume exclude each other"),
        (["-o", "x.doc"], "the suffix of x.doc names no format"),
        (["-b", "0"], "--batch-size '0' is neither a number from 1 to 4096 nor auto"),
        (["--max-failures", "few"], "--max-failures 'few' is neither a number nor a percentage"),
        (["--files-from", "a b", "--files-from", "c"], "--files-from is given twice"),
        (["--max-failures", "101%"], "--max-failures '101%' is neither a number nor a percentage"),
    ],
)
def test_what_does_not_go_together(arguments: list[str], message: str, mf: Mf, many: list[Path]) -> None:
    ran = mf("predict", many[0], *arguments)
    assert ran.code == 2
    assert ran.err.startswith(f"error: {message}\nhint: ")


def start(arguments: list[str | Path]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "mfcli", *arguments], stderr=subprocess.PIPE)


def wait_for_rows(path: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.002)
    raise AssertionError(f"{path} never had {count} rows")


@pytest.fixture(scope="module")
def whole(many: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing ended, over fifteen times the pictures, in every format."""
    path = tmp_path_factory.mktemp("whole") / "whole.json"
    assert start(["predict", *many * 15, "-o", path, "-q"]).wait(240) == 5
    for suffix in ("jsonl", "csv", "tsv", "csv.gz", "jsonl.gz", "parquet"):
        assert start(["convert", path, "-o", path.with_suffix(f".{suffix}"), "-q"]).wait(60) == 0
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "suffix"),
    [
        *((signal.SIGKILL, suffix) for suffix in ("jsonl", "csv", "tsv", "json", "csv.gz", "jsonl.gz", "parquet")),
        (signal.SIGINT, "csv"),
        (signal.SIGHUP, "jsonl"),
    ],
)
def test_a_run_that_was_ended_goes_on_to_the_same_bytes(
    end: signal.Signals, suffix: str, mf: Mf, many: list[Path], whole: Path, tmp_path: Path
) -> None:
    inputs, cut = many * 15, tmp_path / f"cut.{suffix}"
    partial = tmp_path / f"cut.{suffix}.partial"
    process = start(["predict", *inputs, "-o", cut, "-q"])
    wait_for_rows(partial, 40)
    process.send_signal(end)
    process.communicate(timeout=60)
    assert process.returncode in {signal.SIGKILL: (-9,), signal.SIGHUP: (130,)}.get(end, AFTER_CTRL_C)
    part = partial.read_bytes()
    assert 40 <= part.count(b"\n") < len(inputs)
    assert not cut.exists()
    ran = mf("predict", *inputs, "-o", cut)
    assert ran.code == 8
    assert ran.err == (
        f"error: {partial} holds the results of an unfinished run\n"
        "hint: --resume goes on with it; --overwrite discards it\n"
    )
    partial.write_bytes(part + b'{"schema":"mf.pred')  # as if the last write had been torn
    ran = mf("predict", *inputs, "-o", cut, "--resume", "-q")
    assert (ran.code, ran.err) == (5, "")
    assert cut.read_bytes() == whole.with_suffix(f".{suffix}").read_bytes()
    assert sorted(os.listdir(tmp_path)) == [f".cut.{suffix}.run", f"cut.{suffix}"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_an_interrupt_says_what_is_kept(suffix: str, many: list[Path], tmp_path: Path) -> None:
    path, partial = tmp_path / f"out.{suffix}", tmp_path / f"out.{suffix}.partial"
    path.write_text("" if suffix == "jsonl" else "old")
    before = path.read_text()
    for rows_first in (False, True):
        command = [sys.executable, "-m", "mfcli", "predict", "--files-from", "-", "-o", str(path), "--overwrite"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stderr is not None
            if rows_first:
                process.stdin.write(f"{many[0]}\n".encode())
                process.stdin.flush()
                process.stderr.readline()  # which model answered
            time.sleep(2)
            process.send_signal(signal.SIGINT)
            err = process.stderr.read().decode()
            assert process.wait(60) in AFTER_CTRL_C
        assert (f"interrupted: {partial} holds what was done; --resume goes on" in err) == rows_first
        assert partial.exists() == rows_first
        assert path.read_text() == before
    assert [row["input"] for row in rows(partial)] == [str(many[0])]


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_a_run_that_stops_early_leaves_no_final_file(suffix: str, mf: Mf, many: list[Path], tmp_path: Path) -> None:
    path, partial = tmp_path / f"out.{suffix}", tmp_path / f"out.{suffix}.partial"
    ran = mf("predict", *many, "-o", path, "--max-failures", "1")
    assert ran.code == 5
    assert f"note: stopped: {partial} holds what was done; --resume goes on\n" in ran.err
    assert not path.exists()
    assert len(rows(partial)) == 16
    document = json.loads(mf("convert", partial, "--format", "json").out)
    assert document["summary"] == {"inputs": 16, "ok": 14, "failed": 2, "complete": False, "left_out": {}}
    assert mf("predict", *many, "-o", path, "-q", "--overwrite").code == 5
    assert not partial.exists()
    assert mf("predict", *many, "-q", "--format", suffix).out == path.read_text()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(["s3://bucket/a.jsonl"], "copy it to a local file"), (["-", "-o", "s3://bucket/a.csv"], "name a local file")],
)
def test_convert_takes_no_addresses(arguments: list[str], hint: str, mf: Mf) -> None:
    ran = mf("convert", *arguments)
    message = f"error: {arguments[-1]}: object stores and addresses are not supported here\nhint: {hint}\n"
    assert (ran.code, ran.err) == (2, message)


def test_a_document_on_standard_output_says_that_it_is_not_complete(mf: Mf, many: list[Path]) -> None:
    stopped = mf("predict", *many, "-q", "--format", "json", "--max-failures", "0")
    assert json.loads(stopped.out)["summary"] == {"inputs": 6, "ok": 5, "failed": 1, "complete": False, "left_out": {}}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl.gz", "parquet"])
def test_a_finished_file_of_any_format_goes_on(suffix: str, mf: Mf, many: list[Path], tmp_path: Path) -> None:
    path, other = tmp_path / f"out.{suffix}", tmp_path / f"other.{suffix}"
    missing = tmp_path / "late.png"
    assert mf("predict", *many[:3], missing, "-o", path, "-q").code == 5
    assert mf("predict", *many[:3], missing, "-o", path, "-q", "--resume", "-k", "2").code == 8
    missing.write_bytes(many[3].read_bytes())
    assert mf("predict", *many[:3], missing, *many[6:9], "-o", path, "-q", "--retry-failed").code == 0
    assert mf("predict", *many[:3], missing, *many[6:9], "-o", other, "-q").code == 0
    assert path.read_bytes() == other.read_bytes()
    inode = path.stat().st_ino
    assert mf("predict", *many[:3], missing, *many[6:9], "-o", path, "-q", "--resume").code == 0
    assert path.stat().st_ino == inode  # nothing was new
    assert sorted(os.listdir(tmp_path)) == [
        f".other.{suffix}.run",
        f".out.{suffix}.run",
        "late.png",
        f"other.{suffix}",
        f"out.{suffix}",
    ]


def test_what_cannot_be_read_back_cannot_go_on(mf: Mf, many: list[Path], tmp_path: Path) -> None:
    for options in (["-o", tmp_path / "a.txt"], ["-o", tmp_path / "a.csv", "--no-header"]):
        assert mf("predict", many[0], *options, "-q").code == 0
        ran = mf("predict", many[0], *options, "-q", "--resume")
        assert (ran.code, ran.err.splitlines()[0]) == (8, f"error: {options[1]} holds no results that can be read")
    assert mf("predict", many[0], "-o", tmp_path / "b.csv", "-q").code == 0
    (tmp_path / ".b.csv.run").unlink()
    ran = mf("predict", many[0], "-o", tmp_path / "b.csv", "-q", "--resume")
    assert (ran.code, ran.err.splitlines()[0]) == (
        8,
        f"error: {tmp_path / 'b.csv'} does not say which run it belongs to",
    )
    assert not list(tmp_path.glob("*.partial"))


def test_a_finished_file_is_left_as_it_is(mf: Mf, many: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert mf("predict", *many, "-o", path, "-q").code == 5
    before = path.read_bytes()
    assert mf("predict", *many, "-o", path, "--resume", "-q").code == 5
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-k", "3"], "--top-k 5 instead of --top-k 3"),
        (["--no-exif"], "no --no-exif instead of --no-exif"),
        (["--decode", "scaled"], "--decode exact instead of --decode scaled"),
        (["--engine", "torch"], "--engine onnxruntime instead of --engine torch"),
    ],
)
def test_resuming_another_run_names_the_difference(
    options: list[str], message: str, mf: Mf, many: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    assert mf("predict", *many[:2], "-o", path, "-q").code == 0
    ran = mf("predict", *many[:2], "-o", path, "--resume", *options, "-q")
    assert ran.code == 8
    assert ran.err.startswith(f"error: {path} belongs to a different run: {message}\n")


def test_resuming_with_other_weights(mf: Mf, many: list[Path], small_weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert mf("predict", many[0], "-o", path, "-q", "-m", "bundled", "--weights", small_weights).code == 0
    ran = mf("predict", many[0], "-o", path, "-q", "--resume")
    assert ran.code == 8
    assert "belongs to a different run: other weights of" in ran.err


def test_failed_pictures_are_tried_again(mf: Mf, many: list[Path], tmp_path: Path) -> None:
    inputs = [tmp_path / f"{number}.png" for number in range(5)]
    for source, path in zip(many, inputs, strict=False):
        path.write_bytes(source.read_bytes())
    good = inputs[2].read_bytes()
    inputs[2].unlink()
    path = tmp_path / "out.jsonl"
    assert mf("predict", *inputs, "-o", path, "-q").code == 5
    assert [row["status"] for row in rows(path)] == ["ok", "ok", "error", "ok", "ok"]
    inputs[2].write_bytes(good)
    assert mf("predict", *inputs, "-o", path, "-q", "--resume").code == 5
    assert mf("predict", *inputs, "-o", path, "-q", "--retry-failed").code == 0
    assert [(row["input"], row["status"]) for row in rows(path)] == [(str(p), "ok") for p in inputs]


def test_what_could_not_be_opened_leaves_no_row_once_it_gives_pictures(
    mf: Mf, many: list[Path], tmp_path: Path
) -> None:
    inputs = [tmp_path / name for name in ("p.zip", "cut.zip/in", "new", "glob/*.png", "empty", "gone")]
    path = tmp_path / "out.jsonl"
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.write(many[0], "in/0.png")
        archive.write(many[1], "in/1.png")
    whole = (tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) * 2 // 3])
    assert mf("predict", *inputs, "-o", path, "-q").code == 5
    assert [row["status"] for row in rows(path)] == ["error", "ok", *["error"] * 5]
    (tmp_path / "p.zip").write_bytes(whole)
    (tmp_path / "cut.zip").write_bytes(whole)
    for folder in ("new", "glob", "empty"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "0.png").write_bytes(many[0].read_bytes())
    assert mf("predict", *inputs, "-o", path, "-q", "--retry-failed").code == 5
    assert [row["input"] for row in rows(path) if row["status"] == "error"] == [str(tmp_path / "gone")]
    assert [(Path(row["input"]).name, row["member"]) for row in rows(path) if row["status"] == "ok"] == [
        ("cut.zip", "in/0.png"),
        ("p.zip", "in/0.png"),
        ("p.zip", "in/1.png"),
        ("cut.zip", "in/1.png"),
        ("0.png", None),
        ("0.png", None),
        ("0.png", None),
    ]


def test_what_is_still_so_keeps_its_row(mf: Mf, many: list[Path], tmp_path: Path) -> None:
    good, path, listed = tmp_path / "good.png", tmp_path / "out.jsonl", tmp_path / "list"
    good.write_bytes(many[0].read_bytes())
    with tarfile.open(tmp_path / "cut.tar", "w") as archive:
        for member in ("0.png", "1.png"):
            archive.add(good, member)
        archive.add(many[5], "broken.png")
        archive.add(good, "2.png")
    whole = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: whole.index(b"2.png") + 600])
    inputs = [tmp_path / "cut.tar", tmp_path / "none", good, "http://127.0.0.1:9/a"]
    listed.write_text(f"{tmp_path}/cut.tar/0.png\n{tmp_path}/none/0.png\nhttp://127.0.0.1:9/a/0.png\n")

    def failed() -> list[tuple[str, str | None]]:
        return [(row["input"], row["member"]) for row in rows(path) if row["status"] == "error"]

    assert mf("predict", *inputs, "-o", path, "-q").code == 5
    before, text = failed(), path.read_bytes()
    assert before == [
        (f"{inputs[0]}", "broken.png"),
        (f"{inputs[0]}", None),
        (f"{inputs[1]}", None),
        ("http://127.0.0.1:9/a", None),
    ]
    assert mf("predict", *inputs, "-o", path, "-q", "--retry-failed", "--max-failures", "0").code == 5
    assert path.read_bytes() == text
    assert mf("predict", *inputs, "-o", path, "-q", "--retry-failed").code == 5
    assert path.read_bytes() == text
    assert mf("predict", "--files-from", listed, "-o", path, "-q", "--retry-failed").code == 5
    assert set(failed()) >= set(before)


@pytest.mark.slow
def test_standard_input_is_another_picture_each_time(mf_process: Mf, many: list[Path], tmp_path: Path) -> None:
    for path in many[:2]:
        given = ("predict", "-", "-o", tmp_path / "out.jsonl", "--resume", "-q")
        assert mf_process(*given, stdin=path.read_bytes()).code == 0
    first, second = rows(tmp_path / "out.jsonl")
    assert first["predictions"] != second["predictions"]


def test_failures_can_be_allowed(mf: Mf, many: list[Path]) -> None:
    assert mf("predict", *many, "-q", "--format", "csv", "--allow-failures").code == 0
    assert mf("predict", many[5], "-q", "--format", "csv", "--allow-failures").code == 0


@pytest.mark.slow
def test_too_many_failures_stop_the_run(mf: Mf, many: list[Path]) -> None:
    ran = mf("predict", *many, "-q", "--format", "json", "--max-failures", "2")
    assert ran.code == 5
    assert "stopped: 3 of 26 pictures failed" in ran.err
    document = json.loads(ran.out)
    assert [row["input"] for row in document["results"]] == [str(p) for p in many[:26]]
    assert mf("predict", *many, "-q", "--format", "csv", "--max-failures", "6").code == 5
    ran = mf("predict", *many * 4, "-q", "--format", "csv", "--max-failures", "9%")
    assert ran.out.count("\n") == 101
    assert mf("predict", *many * 4, "-q", "--format", "csv", "--max-failures", "11%").out.count("\n") == 241


def test_a_share_of_failures_counts_in_a_short_run_too(mf: Mf, many: list[Path], tmp_path: Path) -> None:
    options = (*many[4:6], "--allow-failures", "--max-failures")
    assert mf("predict", *options, "50%", "-q").code == 0
    ran = mf("predict", *options, "49%", "-q", "-o", tmp_path / "x.csv")
    assert (ran.code, ran.err.splitlines()[0]) == (5, "error: 1 of 2 pictures failed, which exceeds --max-failures 49%")
    assert (tmp_path / "x.csv").read_text().count("\n") == 3


def test_a_full_disk_under_an_output_file(mf: Mf, many: list[Path]) -> None:
    for format in ("csv", "jsonl"):
        ran = mf("predict", *many, "-q", "-o", "/dev/full", "--format", format)
        assert ran.code == 8
        assert "error: cannot write /dev/full: No space left on device" in ran.err


@pytest.mark.slow
def test_undecodable_names_are_resumed(mf_process: Mf, many: list[Path], tmp_path: Path) -> None:
    odd = [os.fsencode(tmp_path) + name for name in (b"/\xff.png", b"/\xfe.png", b"/a\nb,\"'.png")]
    for path in odd:
        Path(os.fsdecode(path)).write_bytes(many[0].read_bytes())
    out = tmp_path / "out.jsonl"
    assert mf_process("predict", *odd[:2], "-q", "-o", out).code == 0
    assert mf_process("predict", *odd, "-q", "-o", out, "--resume").code == 0
    assert len(rows(out)) == 3
    assert rows(out)[2]["input"] == os.fsdecode(odd[2])


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_disk_that_fills_up_loses_nothing(suffix: str, mf: Mf, many: list[Path], tmp_path: Path) -> None:
    path, whole = tmp_path / f"out.{suffix}", tmp_path / f"whole.{suffix}"
    command = f"ulimit -f 8; exec {sys.executable} -m mfcli predict {' '.join(map(str, many))} -o {path} -q"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (
        8,
        f"error: cannot write {path}.partial: File too large\nhint: --resume goes on with what was done\n",
    )
    assert mf("convert", f"{path}.partial", "--format", "jsonl").out.count("\n") > 3
    assert mf("predict", *many, "-o", path, "-q", "--resume").code == 5
    assert mf("predict", *many, "-o", whole, "-q").code == 5
    assert path.read_bytes() == whole.read_bytes()


def test_a_disk_that_is_full_at_the_end_loses_nothing(
    mf: Mf, many: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.csv"

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        ran = mf("predict", *many[:3], "-o", path, "-q")
    assert (ran.code, ran.err) == (
        8,
        f"error: cannot write {path}: No space left on device\n"
        "hint: free some space; --resume goes on with what was done\n",
    )
    assert len(rows(tmp_path / "out.csv.partial")) == 3
    assert mf("predict", *many[:3], "-o", path, "-q", "--resume").code == 0
    assert len(path.read_text().splitlines()) == 4


def test_a_file_that_is_created_meanwhile_stays(
    mf: Mf, many: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mfcli.outputs.result_file import ResultFile

    path, write = tmp_path / "out.csv", ResultFile.write

    def write_and_create(*arguments: Any) -> None:
        write(*arguments)
        path.write_text("theirs")

    monkeypatch.setattr(ResultFile, "write", write_and_create)
    ran = mf("predict", many[0], "-o", path, "-q")
    assert (ran.code, ran.err) == (
        8,
        f"error: {path} was created while this run was in progress\n"
        f"hint: the results are in {path}.partial; --resume replaces {path}\n",
    )
    assert path.read_text() == "theirs"
    assert len(rows(tmp_path / "out.csv.partial")) == 1


def test_results_are_converted(mf: Mf, mf_process: Mf, many: list[Path], tmp_path: Path) -> None:
    suffixes = ("jsonl", "json", "csv", "tsv", "csv.gz", "json.gz", "parquet")
    for suffix in suffixes:
        assert mf("predict", *many[:8], "-o", tmp_path / f"a.{suffix}", "-q").code == 5
    for source in suffixes:
        for target in suffixes:
            path = tmp_path / f"b.{target}"
            ran = mf("convert", tmp_path / f"a.{source}", "-o", path, "--overwrite")
            assert (ran.code, ran.err) == (0, f"note: 8 pictures: 7 classified, 1 failed; {path}\n")
            say_complete = ("json", "json.gz", "parquet")
            if target not in say_complete or source in say_complete:
                assert path.read_bytes() == (tmp_path / f"a.{target}").read_bytes(), (source, target)
    document = json.loads(mf("convert", tmp_path / "a.csv", "--format", "json").out)
    run = {"engine": "onnxruntime", "precision": "fp32", "top_k": 5}
    assert {name: document["run"][name] for name in run} == run
    assert document["summary"] == {"inputs": 8, "ok": 7, "failed": 1, "complete": None, "left_out": {}}
    assert mf("convert", tmp_path / "a.csv").out == mf("predict", *many[:8], "-q").out
    piped = mf_process("convert", "-", "--format", "csv", "--no-header", stdin=(tmp_path / "a.json.gz").read_bytes())
    assert piped.out.splitlines() == (tmp_path / "a.csv").read_text().splitlines()[1:]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.csv"], 3, "cannot read none.csv: No such file or directory"),
        (["{here}"], 3, "cannot read {here}: Is a directory"),
        (["{here}/empty.csv"], 8, "{here}/empty.csv holds no results"),
        (["{here}/two.jsonl"], 8, "{here}/two.jsonl holds the results of 2 runs"),
        (["{here}/a.jsonl", "-o", "{here}/two.jsonl"], 8, "{here}/two.jsonl exists"),
        (["{here}/a.jsonl", "-o", "x.feather"], 2, "the suffix of x.feather names no format"),
        (["{here}/a.jsonl", "-o", "x.parquet.gz"], 2, "parquet is compressed inside, and nothing reads it in gzip"),
        (["{here}/a.jsonl", "--format", "parquet"], 2, "parquet is for files, which readers begin at the end"),
    ],
)
def test_what_cannot_be_converted(
    arguments: list[str], code: int, message: str, mf: Mf, many: list[Path], tmp_path: Path
) -> None:
    assert mf("predict", many[0], "-o", tmp_path / "a.jsonl", "-q").code == 0
    (tmp_path / "empty.csv").touch()
    row = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "two.jsonl").write_text(row + row.replace('"run":"', '"run":"0'))
    ran = mf("convert", *(argument.format(here=tmp_path) for argument in arguments))
    assert (ran.code, ran.err.splitlines()[0]) == (code, f"error: {message.format(here=tmp_path)}")


def test_lines_of_ones_own(mf: Mf, many: list[Path], tmp_path: Path) -> None:
    text = r"{input}\t{status}\t{prob:.2f}"
    lines = [line.split("\t") for line in mf("predict", *many[4:6], "-q", "--template", text).out.splitlines()]
    assert [line[:2] for line in lines] == [[str(many[4]), "ok"], [str(many[5]), "error"]]
    assert 0 < float(lines[0][2]) <= 1
    assert lines[1][2] == ""
    assert mf("predict", *many[4:6], "-q", "-o", tmp_path / "own.gz", "--template", text).code == 5
    ran = mf("predict", "missing.jpg", "--template", "{nmae}", "--model", "no_such_model")
    assert (ran.code, ran.err.splitlines()[0]) == (2, "error: a template has no field {nmae}")


def test_all_classes(mf: Mf, many: list[Path]) -> None:
    row = json.loads(mf("predict", many[0], "-q", "-k", "all", "--format", "jsonl").out)
    assert [p["rank"] for p in row["predictions"]] == list(range(1, 201))


@pytest.mark.slow
def test_names_that_are_not_utf8_stay_different_in_csv(mf_process: Mf, many: list[Path], tmp_path: Path) -> None:
    odd = [os.fsencode(tmp_path) + name for name in (b"/\xff.png", b"/\xfe.png")]
    for path in odd:
        Path(os.fsdecode(path)).write_bytes(many[0].read_bytes())
    out = tmp_path / "out.csv"
    assert mf_process("predict", odd[0], "-q", "-o", out).code == 0
    assert mf_process("predict", *odd, "-q", "-o", out, "--resume").code == 0
    with out.open(newline="") as stream:
        found = list(csv.DictReader(stream))
    assert len({row["input"] for row in found}) == 1
    assert [base64.b64decode(row["input_b64"]) for row in found] == odd


def test_a_folder_an_archive_and_a_glob(mf: Mf, many: list[Path], tmp_path: Path) -> None:
    import zipfile

    for name in ("b10.png", "b9.png", "sub/a.png", ".hidden.png", "notes.txt"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(many[0].read_bytes())
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(many[0], "inner/z.png")
    folder = str(tmp_path / "photos")
    ran = mf("predict", folder, tmp_path / "photos.zip", f"{folder}/b*.png", "-q", "--format", "csv")
    found = [(row["input"], row["member"], row["status"]) for row in csv.DictReader(ran.out.splitlines())]
    assert ran.code == 0
    assert found == [
        (f"{folder}/b9.png", "", "ok"),
        (f"{folder}/b10.png", "", "ok"),
        (f"{folder}/sub/a.png", "", "ok"),
        (str(tmp_path / "photos.zip"), "inner/z.png", "ok"),
        (f"{folder}/b9.png", "", "ok"),
        (f"{folder}/b10.png", "", "ok"),
    ]
    line = mf("predict", tmp_path / "photos.zip", "-q", "-k", "1").out.splitlines()[0]
    name = line.split("  ")[0]
    assert name == f"{tmp_path}/photos.zip/inner/z.png"
    assert mf("predict", name, "-q").out.startswith(f"{name}  ")  # it can be pasted back


def test_a_resume_that_has_nothing_to_do(mf: Mf, many: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert "note: 2 pictures: 2 classified;" in mf("predict", *many[:2], "-o", path).err
    assert "note: 3 pictures: 3 classified;" in mf("predict", *many[:3], "-o", path, "--resume").err
    again = mf("predict", *many[:3], "-o", path, "--resume")
    assert (again.code, again.err) == (0, f"note: nothing was left to do; 3 pictures: 3 classified before; {path}\n")


def test_a_folder_of_a_phone(mf: Mf, many: list[Path], tmp_path: Path) -> None:
    for name in ("a.mp4", "b.MP4", "c.dng"):
        (tmp_path / name).touch()
    (tmp_path / "a.png").write_bytes(many[0].read_bytes())
    ran = mf("predict", tmp_path, "--format", "json")
    assert ran.code == 0
    assert json.loads(ran.out)["summary"] == {
        "inputs": 1,
        "ok": 1,
        "failed": 0,
        "complete": True,
        "left_out": {".mp4": 2, ".dng": 1},
    }
    assert ran.err.splitlines()[-1] == "note: left out: 2 .mp4, 1 .dng"
    assert mf("predict", tmp_path, "--format", "json", "-q").err == ""


def test_a_folder_without_pictures(mf: Mf, many: list[Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    ran = mf("predict", tmp_path, "-q", "--format", "csv")
    assert ran.code == 3
    assert f"error: no pictures in {tmp_path}" in ran.err
    ran = mf("predict", many[0], tmp_path, "-q", "--format", "csv")
    found = [(row["input"], row["error_code"]) for row in csv.DictReader(ran.out.splitlines())]
    assert (ran.code, ran.err) == (5, "")
    assert found == [(str(many[0]), ""), (str(tmp_path), "not_found")]


def test_a_list_is_answered_while_it_is_still_written(many: list[Path]) -> None:
    command = [sys.executable, "-m", "mfcli", "predict", "--files-from", "-", "-0", "--format", "jsonl", "-q"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for path in many[:3]:
            process.stdin.write(os.fsencode(path) + b"\0")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["input"] == str(path)
        process.stdin.close()
        assert process.wait(30) == 0


def test_a_file_that_vanishes_while_it_waits(mf: Mf, many: list[Path], tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        path.write_bytes(many[0].read_bytes())
    (tmp_path / "list").write_text("\n".join(map(str, paths)))
    paths[1].unlink()
    ran = mf("predict", "--files-from", tmp_path / "list", "-q", "--format", "jsonl")
    found = [json.loads(line) for line in ran.out.splitlines()]
    assert [row["error"] and row["error"]["code"] for row in found] == [None, "not_found", None]


def test_nothing_is_replaced_by_a_run_without_inputs(mf: Mf, many: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("old.csv", "old.jsonl", "old.json"):
        path = tmp_path / name
        assert mf("predict", many[0], "-o", path, "-q").code == 0
        before = path.read_bytes()
        assert mf("predict", tmp_path / "empty", "-o", path, "-q", "--overwrite").code == 3
        assert path.read_bytes() == before
        assert mf("predict", tmp_path / "empty", "-o", tmp_path / f"new-{name}", "-q").code == 3
        assert not (tmp_path / f"new-{name}").exists()
        assert mf("predict", many[0], "-o", tmp_path / f"new-{name}", "-q").code == 0


def test_an_input_is_no_output(mf: Mf, many: list[Path], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{many[0]}\n")
    ran = mf("predict", "--files-from", tmp_path / "list.txt", "-o", tmp_path / "list.txt", "--overwrite", "-q")
    assert (ran.code, ran.err.splitlines()[0]) == (8, f"error: {tmp_path}/list.txt is an input")
    assert (tmp_path / "list.txt").read_text() == f"{many[0]}\n"


@pytest.mark.parametrize("name", ["p.zip", "a.PNG"])
def test_a_picture_or_an_archive_is_not_replaced(name: str, mf: Mf, many: list[Path], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(many[0].read_bytes())
    ran = mf("predict", tmp_path, "-o", tmp_path / name, "--format", "csv", "--overwrite", "-q")
    assert (ran.code, ran.err.splitlines()[0]) == (
        8,
        f"error: {tmp_path / name} has the name of a picture or an archive",
    )
    assert (tmp_path / name).read_bytes() == many[0].read_bytes()


@pytest.mark.slow
def test_a_list_through_a_pipe_is_read_once(mf_terminal: Mf, many: list[Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list")  # a bar, which is drawn on a terminal, wants to know how many there are
    names = "".join(f"{path}\n" for path in many * 20)
    given = ("predict", "--files-from", tmp_path / "list", "-o", tmp_path / "o.jsonl")
    assert mf_terminal(*given, meanwhile=lambda: (tmp_path / "list").write_text(names)).code == 5
    assert [row["input"] for row in rows(tmp_path / "o.jsonl")] == [str(path) for path in many * 20]


@pytest.mark.slow
@pytest.mark.parametrize("limit_mb", [200, 300, 500, 700, 760, 820, 870, 900, 1100, 1300])
def test_a_lack_of_memory_is_never_the_pictures_fault(limit_mb: int, tmp_path: Path) -> None:
    picture(4000, 3000).save(tmp_path / "0.jpg")
    picture(4000, 3000).save(tmp_path / "1.jpg", progressive=True)
    for number in range(2, 12):
        (tmp_path / f"{number}.jpg").symlink_to(tmp_path / f"{number % 2}.jpg")
    limit = limit_mb * 2**20
    ran = subprocess.run(
        [sys.executable, "-m", "mfcli", "predict", tmp_path, "-q", "-j", "4", "--format", "jsonl"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        check=False,
    )
    assert '"status":"error"' not in ran.stdout
    assert ran.returncode == 0 or (
        limit_mb < 1100 and ("too little memory" in ran.stderr or "cannot allocate memory" in ran.stderr)
    )


@pytest.mark.slow
def test_an_interrupt_while_nobody_reads_leaves_whole_rows(many: list[Path]) -> None:
    inputs = [str(path) for number, path in enumerate(many) if number % 10 != 5] * 6
    command = [sys.executable, "-m", "mfcli", "predict", "-q", "-k", "200", "--format", "json", *inputs]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        begun = os.read(process.stdout.fileno(), 10)
        time.sleep(1)  # the pipe is full by now
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        document = json.loads(begun + process.stdout.read())
        assert process.wait(60) in AFTER_CTRL_C
    assert len(document["results"]) == document["summary"]["inputs"]


def test_the_maker_of_the_engine_is_told_nothing(mf_process: Mf, many: list[Path], tmp_path: Path) -> None:
    ran = mf_process("predict", many[0], "-q", HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / ".cache"))
    assert (ran.code, ran.err) == (0, "")
    assert list(tmp_path.iterdir()) == []  # onnxruntime keeps what it wants to send, and an identity, in the home


@pytest.mark.slow
def test_a_list_on_a_pipe_that_does_not_wait_is_waited_for(many: list[Path]) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    command = [sys.executable, "-m", "mfcli", "predict", "--files-from", "-", "-q", "--format", "jsonl"]
    with subprocess.Popen(command, stdin=read, stdout=subprocess.PIPE) as process:
        os.close(read)
        for path in many[:2]:
            time.sleep(1)
            os.write(write, f"{path}\n".encode())
        os.close(write)
        assert process.stdout is not None
        assert [json.loads(line)["input"] for line in process.stdout] == [str(path) for path in many[:2]]
    assert process.returncode == 0


def test_ctrl_c_in_a_terminal_ends_the_loop_of_the_shell(tmp_path: Path) -> None:
    import pty

    os.mkfifo(tmp_path / "list")
    loop = f"for i in 1 2 3; do echo start $i; {sys.executable} -m mfcli predict --files-from list -q; done; echo all"
    process, terminal = pty.fork()
    if not process:
        os.chdir(tmp_path)
        os.execvp("bash", ["bash", "-c", loop])
    with (tmp_path / "list").open("w"):  # it is read: the run has begun
        os.write(terminal, b"\x03")
        shown = b""
        with contextlib.suppress(OSError):  # at its end
            while b"start 2" not in shown and (read := os.read(terminal, 65536)):
                shown += read
    os.close(terminal)
    if b"start 2" in shown:
        os.kill(process, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGINT
    assert b"start 1" in shown
    assert b"start 2" not in shown


@pytest.mark.slow
def test_what_a_library_says_on_a_closed_stderr_is_not_in_the_results(many: list[Path], tmp_path: Path) -> None:
    from PIL import Image

    with Image.open(CHECKOUT / "examples" / "orange.jpg") as orange:
        orange.save(tmp_path / "x.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "x.tif").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = b"\x99" * 40
    (tmp_path / "x.tif").write_bytes(data)
    command = f"{sys.executable} -m mfcli predict {tmp_path}/x.tif {many[0]} -k 1 -o {tmp_path}/out.csv"
    for closed in ("", "2>&-", "0<&- 2>&-"):
        done = subprocess.run(f"{command} --overwrite {closed}", shell=True, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 5, done.stderr
        with (tmp_path / "out.csv").open(newline="") as stream:
            assert [row["status"] for row in csv.DictReader(stream)] == ["error", "ok"]
    assert done.stderr == b""


@pytest.mark.slow
def test_a_pipe_that_does_not_wait_gets_every_row(many: list[Path]) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    command = [sys.executable, "-m", "mfcli", "predict", "-q", "-k", "200", "--format", "jsonl", *map(str, many * 2)]
    with subprocess.Popen(command, stdout=writer) as process:
        os.close(writer)
        time.sleep(3)  # the pipe is full by now
        with os.fdopen(reader) as stream:
            assert [json.loads(line)["input"] for line in stream] == [str(path) for path in many * 2]
        assert process.wait(60) == 5


@pytest.mark.parametrize(("to", "has_bar"), [("file", True), ("pipe", True), ("terminal", False)])
def test_a_bar_is_drawn_where_rows_are_not_on_the_terminal(
    to: str, has_bar: bool, mf_terminal: Mf, many: list[Path]
) -> None:
    assert ("60/60" in mf_terminal("predict", many[0].parent, "--format", "jsonl", to=to).err) is has_bar


def test_an_address_with_a_query_is_one_picture(mf: Mf) -> None:
    one = mf("predict", "http://127.0.0.1:9/x.jpg?w=1", "--offline")
    assert (one.code, len(one.out.splitlines())) == (6, 1)  # its row, and no line with counts


@pytest.mark.parametrize(
    ("options", "on_terminal", "is_recommended"),
    [([], True, True), ([], False, False), (["-q"], True, False), (["--decode", "scaled"], True, False)],
)
def test_scaled_decoding_is_recommended_where_decoding_takes_most_of_the_time(
    options: list[str], on_terminal: bool, is_recommended: bool, mf: Mf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (3000, 2000), "red").save(tmp_path / "large.jpg")
    monkeypatch.setattr("mfcli.cli.predict_run._LONG_DECODING_S", 0)
    monkeypatch.setattr("mfcli.cli.predict_run.usable_cores", lambda: 0.01)
    monkeypatch.setattr("mfcli.cli.predict_run.is_terminal", lambda _: on_terminal)
    err = mf("predict", tmp_path / "large.jpg", *options).err
    assert (err.count("% of the time; --decode scaled takes about") == 1) is is_recommended


def test_a_name_does_not_steer_the_terminal(mf: Mf, tmp_path: Path) -> None:
    (tmp_path / "em\x1b[31m\npty").mkdir()
    ran = mf("predict", tmp_path / "em\x1b[31m\npty")
    assert f"no pictures in {tmp_path}/em\\x1b[31m\\npty\n" in ran.err
    assert ran.err.replace("\n", "").isprintable()


def test_a_terminal_that_goes_away_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from mfcli.cli import progress
    from mfcli.results import Tally

    class Gone:
        def __getattr__(self, name: str) -> Any:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(progress, "_RunBar", Gone)
    monkeypatch.setattr(progress.StderrProgress, "draws_runs", True)
    with progress.StderrProgress(note=lambda _: None) as shown:
        shown(Tally(1, 0, 0))
        shown._run = Gone()  # type: ignore[assignment]
        shown(Tally(2, 0, 0))
        shown("a note")
    assert isinstance(shown._run, Gone)  # nothing took the bar away: each call met the error


def test_a_folder_in_an_archive_is_many_pictures_and_a_member_one(mf: Mf, many: list[Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for path in many[:2]:
            archive.write(path, f"inner/{path.name}")
            archive.write(path, f"2024.05/{path.name}")
    archived = tmp_path / "p.zip"
    for name, lines in (
        (f"{archived}/inner", 3),
        (f"{archived}/2024.05", 3),
        (f"{archived}/inner/*.png", 3),
        (f"{archived}/inner/000.png", 11),  # a concept and a table
    ):
        assert len(mf("predict", name, "-q").out.splitlines()) == lines, name
