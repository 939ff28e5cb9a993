"""The command line: exit codes, streams, messages, for good and for bad input."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import AFTER_CTRL_C, CHECKOUT, Ran
from deterministic import picture
from mfcli import __version__
from mfcli.cli import main
from mfcli.errors import EngineError
from mfcli.models.registry import Variant, list_variants
from mfcli.settings import Settings

Mf = Callable[..., Ran]
NOTE = "note: answered by the small bundled model, which knows 200 classes"


@pytest.fixture
def bad(tmp_path: Path, coffee: Path) -> dict[str, Path]:
    """One file of every kind of bad picture, by the code of its row."""
    files = {name: tmp_path / f"{name}.jpg" for name in ("truncated", "unsupported", "decode", "too_large", "empty")}
    files["truncated"].write_bytes(coffee.read_bytes()[:20_000])
    files["unsupported"].write_text("hello")
    picture(30, 30).save(tmp_path / "x.png")
    data = bytearray((tmp_path / "x.png").read_bytes())
    data[60:80] = bytes(20)
    files["decode"].write_bytes(data)
    picture(1, 60_000).save(tmp_path / "strip.png")
    (tmp_path / "strip.png").rename(files["too_large"])
    files["empty"].write_bytes(b"")
    files["not_found"] = tmp_path / "none.jpg"
    return files


@pytest.fixture
def doubtful(tmp_path: Path) -> Path:
    """A grey picture."""
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "grey.png")
    return tmp_path / "grey.png"


def test_a_table(mf: Mf, coffee: Path) -> None:
    ran = mf("predict", coffee)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{coffee}  600x400\n╭")
    assert "│ 1 │ espresso " in ran.out


def test_the_note_is_about_doubtful_answers(mf: Mf, coffee: Path, doubtful: Path, tmp_path: Path) -> None:
    assert NOTE not in mf("predict", tmp_path / "none.jpg", coffee).err
    ran = mf("predict", tmp_path / "none.jpg", coffee, doubtful, doubtful, "--format", "csv")
    assert ran.err.count(NOTE) == 1
    assert "--model caformer_s18" in ran.err


def test_the_bundled_model_abstains_if_asked(mf: Mf, coffee: Path, doubtful: Path) -> None:
    """By default it marks nothing: of pictures of its classes, more than half would be marked."""
    marks = {}
    for options in ((), ("--max-error", "10%"), ("--abstain", "both"), ("--abstain", "off", "--max-error", "10%")):
        ran = mf("predict", coffee, doubtful, *options, "--format", "jsonl")
        marks[options] = [json.loads(line)["abstained"] for line in ran.out.splitlines()]
    nothing, unsure = [None, None], [None, "unsure"]
    assert list(marks.values()) == [nothing, unsure, unsure, nothing]
    ran = mf("predict", coffee, "--abstain", "unfamiliar")
    assert (ran.code, "does not know which pictures are unfamiliar" in ran.err) == (2, True)


def test_a_model_that_knows_no_limits_cannot_abstain(mf: Mf, coffee: Path, small_weights: Path) -> None:
    ran = mf("predict", coffee, "-m", "bundled", "--weights", small_weights, "--max-error", "5%")
    assert (ran.code, "error: convformer_t8_64 does not know when it is wrong" in ran.err) == (2, True)


def test_a_dash_is_standard_output(mf: Mf, coffee: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = mf("predict", coffee, "--format", "csv").out
    assert mf("predict", coffee, "--format", "csv", "-o", "-").out == expected
    assert not Path("-").exists()
    assert mf("predict", coffee, "--format", "csv", "-o", "-", "--overwrite").code == 2


def test_retried_pictures_have_the_note_too(mf: Mf, doubtful: Path, tmp_path: Path) -> None:
    command = ("predict", tmp_path / "late.jpg", "-o", tmp_path / "rows.jsonl")
    assert NOTE not in mf(*command).err
    (tmp_path / "late.jpg").write_bytes(doubtful.read_bytes())
    assert mf(*command, "--retry-failed").err.count(NOTE) == 1


def test_quiet_says_nothing(mf: Mf, coffee: Path) -> None:
    assert mf("predict", coffee, "-q").err == ""


def test_jsonl(mf: Mf, coffee: Path) -> None:
    ran = mf("predict", coffee, "-q", "-k", "2", "--format", "jsonl")
    row = json.loads(ran.out)
    assert (row["schema"], row["input"], row["status"]) == ("mf.predict/1", str(coffee), "ok")
    assert row["predictions"][0]["label"] == "espresso"
    assert len(row["predictions"]) == 2


def test_standard_input(mf_process: Mf, coffee: Path) -> None:
    ran = mf_process("predict", "-", "-q", "--format", "jsonl", stdin=coffee.read_bytes())
    row = json.loads(ran.out)
    assert (ran.code, row["input"], row["predictions"][0]["label"]) == (0, "-", "espresso")
    empty = mf_process("predict", "-", "-q", "--format", "jsonl")
    assert (empty.code, json.loads(empty.out)["error"]["message"]) == (6, "is empty (0 bytes)")


def test_every_bad_picture_is_a_row_and_the_rest_are_answered(mf: Mf, bad: dict[str, Path], coffee: Path) -> None:
    inputs = [coffee, *bad.values(), Path("/dev/null"), coffee]
    ran = mf("predict", *inputs, "-q", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert ran.code == 5
    assert ran.err == ""
    assert [row["input"] for row in rows] == [str(path) for path in inputs]
    assert [row["error_code"] for row in rows] == [
        "",
        "truncated",
        "unsupported",
        "decode",
        "too_large",
        "truncated",
        "not_found",
        "unsupported",
        "",
    ]
    assert rows[0]["label_1"] == rows[-1]["label_1"] == "espresso"
    assert all(bool(row["label_1"]) != bool(row["error_message"]) for row in rows)


@pytest.mark.parametrize("format", ["table", "json", "jsonl", "csv", "tsv"])
def test_exit_codes_count_failures(mf: Mf, bad: dict[str, Path], coffee: Path, format: str) -> None:
    assert mf("predict", coffee, "--format", format).code == 0
    assert mf("predict", coffee, bad["empty"], "--format", format).code == 5
    assert mf("predict", bad["empty"], bad["not_found"], "--format", format).code == 6


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["cat.jpg"], "mf predict cat.jpg"),
        (["--", "cat.jpg"], "mf predict cat.jpg"),
        (["https://example.org/x"], "mf predict https://example.org/x"),
        (["list"], "mf list-models --help"),
        (["frobnicate"], "mf --help"),
        (["cache", "x"], "mf cache --help"),
        (["predict", "x.jpg", "-o"], "mf predict --help"),
        (["predict", "x.jpg", "-m", "s36"], "did you mean caformer_s36 or "),
        (["find", "sports car"], "mf find 'sports car' photos"),
        (["find", "cat", "x.jpg", "-o", "found"], "-o found.csv, or --format, one of json, jsonl,"),
        (["predict"], "mf predict cat.jpg; a picture on standard input: -, names: --files-from -"),
        (["predict", "x.jpg", "--json"], "--format json\n"),
        (["list-models", "--csv"], "--format csv\n"),
        (["completion", "bash", "--json"], "mf completion --help"),
    ],
)
def test_hints(mf: Mf, arguments: list[str], hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert f"\nhint: {hint}" in mf(*arguments).err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predict"], 3, "nothing to classify"),
        (["find", "sports car"], 3, "no pictures to find 'sports car' in"),
        (["predict", "x.jpg", "--nonsense"], 2, "No such option"),
        (["predict", "x.jpg", "--format", "xml"], 2, "'xml' is not one of"),
        (["predict", "x.jpg", "-k", "0"], 2, "--top-k 0 is less than 1"),
        (["predict", "x.jpg", "-k", "201"], 2, "--top-k 201 is not between 1 and the 200 classes"),
        (["predict", "x.jpg", "-k", "many"], 2, "--top-k 'many' is neither a number nor all"),
        (["predict", "x.jpg", "--max-pixels", "0"], 2, "Invalid value for '--max-pixels'"),
        (["predict", "x.jpg", "--labels", "none.txt"], 2, "cannot read labels from none.txt"),
        (["predict", "-", "-"], 2, "can be given once"),
        (["predict", "x.jpg", "-m", "caformer_s81"], 4, "unknown model 'caformer_s81'"),
        (["predict", "x.jpg", "-m", "caformer_s18", "--offline"], 4, "weights of caformer_s18 are not on this machine"),
        (["predict", "x.jpg", "--weights", "none.pth"], 4, "cannot read weights from"),
        (["info", "resnet50"], 4, "unknown model 'resnet50'"),
        (["list-models", "resnet*"], 4, "no model matches 'resnet*'"),
        (["list-models", "--family", "resnet"], 2, "'resnet' is not one of"),
        (["predict", "x.jpg", "-m", ""], 4, "unknown model ''"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
    ],
)
def test_errors(mf: Mf, arguments: list[str], code: int, message: str) -> None:
    ran = mf(*arguments)
    assert ran.code == code
    assert ran.out == ""
    lines = ran.err.splitlines()
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert len(lines) == 2
    assert lines[1].startswith("hint: ")


def test_no_command_shows_help(mf: Mf) -> None:
    for ran in (mf(), mf("cache")):
        assert "Usage: mf" in ran.out
        assert (ran.code, ran.err) == (2, "")


def test_hints_name_the_commands_own_help(mf: Mf) -> None:
    assert mf("predict", "--format", "yaml").err.endswith("hint: mf predict --help\n")
    assert mf("cache", "ls", "--format", "yaml").err.endswith("hint: mf cache ls --help\n")
    assert "a file that begins with a dash comes after --" in mf("predict", "-dash.jpg").err


def test_a_head_of_few_classes_needs_no_top_k(mf: Mf, coffee: Path, tmp_path: Path) -> None:
    import torch

    from mfcli import create_model

    torch.save(create_model("bundled", num_classes=3).state_dict(), tmp_path / "x.pth")
    ran = mf("predict", coffee, "-m", "bundled", "--weights", tmp_path / "x.pth", "--format", "jsonl")
    assert len(json.loads(ran.out)["predictions"]) == 3


def test_logits_that_are_no_numbers_are_no_answer(mf: Mf, coffee: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from mfcli.inference.engines.onnxruntime import OnnxRuntimeEngine

    monkeypatch.setattr(OnnxRuntimeEngine, "compute", lambda *_: (np.full((1, 200), np.nan, np.float32),))
    ran = mf("predict", coffee, "-q", "--format", "jsonl")
    assert (ran.code, ran.out) == (7, "")
    assert "hint: install it again, in the checkout: pip install --force-reinstall --no-deps ." in ran.err


def test_a_file_that_is_no_checkpoint(mf: Mf, coffee: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_text("hello")
    ran = mf("predict", coffee, "-m", "caformer_s18", "--weights", tmp_path / "x.pth")
    assert ran.code == 4
    assert "is not a checkpoint" in ran.err


@pytest.mark.slow
def test_weights_without_a_model_name_the_row_that_fits(mf: Mf, coffee: Path, tmp_path: Path) -> None:
    import torch

    from mfcli import create_model

    torch.save(create_model("poolformer_s12").state_dict(), tmp_path / "x.pth")
    ran = mf("predict", coffee, "--weights", tmp_path / "x.pth")
    assert ran.code == 4
    assert "does not fit convformer_t8_64" in ran.err
    assert "hint: these weights fit --model poolformer_s12" in ran.err


def test_own_weights_and_labels(mf: Mf, coffee: Path, small_weights: Path, tmp_path: Path) -> None:
    command = ("predict", coffee, "-m", "bundled", "--weights", small_weights, "-k", "7", "--format", "jsonl")
    first = mf(*command)
    assert first.code == 0
    assert "note: preparing convformer_t8_64 (once for these weights)" in first.err
    assert f"note: the head of {small_weights} has 7 classes without names; name them: --labels FILE" in first.err
    assert NOTE not in first.err
    (tmp_path / "names.txt").write_text("".join(f"thing {i}\n" for i in range(7)))
    second = mf(*command, "--labels", tmp_path / "names.txt")
    assert second.err == ""
    found = [json.loads(ran.out)["predictions"] for ran in (first, second)]
    assert [p["label"].replace("class_", "thing ") for p in found[0]] == [p["label"] for p in found[1]]
    assert [p["prob"] for p in found[0]] == [p["prob"] for p in found[1]]
    assert {p["wnid"] for p in found[0]} == {None}
    short = mf(*command, "--labels", CHECKOUT / "LICENSE")
    assert short.code == 2


def test_exif_can_be_ignored(mf: Mf, tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    picture(40, 20).save(tmp_path / "x.jpg", exif=exif)
    sizes = [
        [json.loads(mf("predict", tmp_path / "x.jpg", "--format", "jsonl", *flag).out)[k] for k in ("width", "height")]
        for flag in ([], ["--no-exif"])
    ]
    assert sizes == [[20, 40], [40, 20]]


def test_max_pixels(mf: Mf, coffee: Path) -> None:
    ran = mf("predict", coffee, "--max-pixels", "239999", "--format", "jsonl")
    assert ran.code == 6
    assert json.loads(ran.out)["error"] == {"code": "too_large", "message": "600x400 is over --max-pixels 239999"}


def test_rows_name_the_commands_own_options(mf: Mf, tmp_path: Path) -> None:
    picture(8, 8).save(tmp_path / "x.ico")
    (tmp_path / "names").write_bytes(b"a.jpg\0b.jpg\0")
    out = mf("predict", tmp_path / "x.ico", "http://[::1]/x.jpg", "--files-from", tmp_path / "names", "--offline").out
    assert "is decoded only on request: --formats ico\n" in out
    assert "(--offline, MF_OFFLINE" in out
    assert "needs --null\n" in out


def test_an_unwritable_cache(mf: Mf, coffee: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MF_CACHE_DIR", "/dev/null/x")
    ran = mf("predict", coffee, "-m", "bundled", "--weights", small_weights)
    assert ran.code == 8
    assert "error: cannot write to the cache /dev/null/x/artifacts: Not a directory" in ran.err
    assert "hint: name another folder: MF_CACHE_DIR=DIR" in ran.err


@pytest.mark.slow
def test_a_damaged_artifact_of_the_right_size(mf: Mf, coffee: Path, small_weights: Path, own_cache: Path) -> None:
    command = ("predict", coffee, "-m", "bundled", "--weights", small_weights, "-q", "-k", "1")
    assert mf(*command).code == 0
    (path,) = (own_cache / "artifacts").glob("*.onnx")
    data = bytearray(path.read_bytes())
    position = data.index(b"LayerNormalization")
    data[position : position + 5] = b"Wrong"
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a disk does it
    ran = mf(*command)
    assert ran.code == 7
    assert ran.err.startswith(f"error: ONNX Runtime cannot load {path}: ")
    assert f"rm {path}" in ran.err
    ran = mf("cache", "verify")
    assert ran.code == 9
    assert f"hint: delete, and the next prediction rebuilds it: rm {path}" in ran.err
    path.touch()  # as anything else does it: seen, and made again
    assert mf(*command).code == 0
    assert mf("cache", "verify").code == 0


@pytest.mark.slow
def test_a_name_that_is_not_utf8(mf_process: Mf, coffee: Path, tmp_path: Path) -> None:
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9\n.jpg")
    with open(name, "wb") as file:
        file.write(coffee.read_bytes())
    row = json.loads(mf_process("predict", name, "-q", "--format", "jsonl").out)
    import base64

    assert row["input"] == f"{tmp_path}/caf\ufffd\n.jpg"
    assert base64.b64decode(row["input_b64"]) == name
    for format in ("csv", "table"):
        assert mf_process("predict", name, "-q", "--format", format, PYTHONIOENCODING="ascii").code == 0


def test_list_models(mf: Mf) -> None:
    rows = json.loads(mf("list-models", "--format", "json").out)
    assert len(rows) == 61
    assert rows[0]["name"] == "convformer_t8_64"
    named = json.loads(mf("list-models", "caformer_*_384", "--format", "json").out)
    assert [row["name"] for row in named] == [f"caformer_{size}_384" for size in ("s18", "s36", "m36", "b36")]
    assert len(json.loads(mf("list-models", "caformer_s18.*", "--format", "json").out)) == 5
    chosen = mf("list-models", "s18", "--family", "convformer", "--pretraining", "in21ft1k", "--format", "csv").out
    assert [row["name"] for row in csv.DictReader(io.StringIO(chosen))] == [
        "convformer_s18_in21ft1k",
        "convformer_s18_384_in21ft1k",
    ]
    table = mf("list-models", "--input-size", "64").out.splitlines()
    assert [line.split() for line in table] == [
        ["name", "input_size", "pretraining", "classes", "params_m", "macs_g", "top1", "here_mb"],
        ["convformer_t8_64", "64", "bundled", "200", "3.6", "7.2"],
    ]


def test_info(mf: Mf) -> None:
    fields = json.loads(mf("info", "caformer_s18.sail_in1k", "--format", "json").out)
    assert (fields["name"], fields["depths"], fields["published_top1"]) == ("caformer_s18", [3, 3, 9, 3], 83.6)
    assert (fields["resize_shorter_side"], fields["artifacts"]) == (224, [])
    bundled = json.loads(mf("info", "bundled", "--format", "json").out)
    assert Path(bundled["artifacts"][0]["path"]).is_file()
    assert bundled["artifacts"][0]["check"]["batch_3"] < 1e-4
    table = {line.split()[0]: " ".join(line.split()[1:]) for line in mf("info", "bundled").out.splitlines()}
    assert (table["name"], table["depths"], table["artifact_classes"]) == ("convformer_t8_64", "1 2 3 2", "200")
    assert table["artifact_path"] == bundled["artifacts"][0]["path"]


@pytest.mark.parametrize("variant", list_variants(), ids=lambda v: v.name)
def test_the_preprocessing_that_info_tells_is_timms(variant: Variant) -> None:
    from mfcli.models.preprocess import make_preprocess_plan
    from mfcli.tasks.info import describe

    plan, told = make_preprocess_plan(variant), describe(variant, Settings.from_environ())
    assert told["resize_shorter_side"] == plan.resize_shorter_side
    assert tuple(told["crop_size"]) == plan.crop_size


def test_version_and_help(mf: Mf) -> None:
    assert mf("--version").out == f"mf {__version__}\n"
    for arguments in (["--help"], ["-h"], ["predict", "-h"], ["list-models", "-h"], ["info", "--help"]):
        ran = mf(*arguments)
        assert (ran.code, ran.err) == (0, "")
        assert "Usage: mf" in ran.out


def run_with_stdout(stdout: Any, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "mfcli", *arguments], stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=120
    )


@pytest.mark.parametrize(
    "command", [["predict", "-q", "--format", "jsonl"], ["--help"], ["--version"], ["list-models"]]
)
def test_a_full_disk(command: list[str], coffee: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run_with_stdout(full, *command, *([str(coffee)] if command[0] == "predict" else []))
    assert done.returncode == 8
    assert done.stderr.decode().startswith("error: cannot write the results: No space left on device")


@pytest.mark.parametrize(
    "command", [["predict", "-q", "--format", "csv"], ["predict", "-q"], ["list-models"], ["--help"]]
)
def test_a_broken_pipe_ends_quietly(command: list[str], coffee: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run_with_stdout(writing, *command, *([str(coffee)] if command[0] == "predict" else []))
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def run_in_shell(command: str) -> Ran:
    command = command.replace("mf ", f"{sys.executable} -m mfcli ", 1)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_closed_standard_streams(coffee: Path) -> None:
    ran = run_in_shell(f"mf predict {coffee} -q --format csv >&-")
    assert (ran.code, ran.err.splitlines()[0]) == (8, "error: standard output is closed")
    assert run_in_shell(f"mf predict {coffee} -q --format csv <&-").code == 0
    assert "which is closed" in run_in_shell("mf predict - <&-").err
    without_stderr = run_in_shell(f"mf predict {coffee} --format jsonl 2>&-")
    assert json.loads(without_stderr.out)["status"] == "ok"
    assert run_in_shell("mf predict x -m nothing 2>&-") == Ran(4, "", "")


def test_a_cache_in_a_home_that_is_not_there(
    mf: Mf, coffee: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MF_CACHE_DIR", "~nosuchuser/cache")
    assert mf("predict", coffee).code == 0
    ran = mf("predict", coffee, "-m", "bundled", "--weights", small_weights)
    assert (ran.code, ran.err.splitlines()[1]) == (2, "hint: use an absolute path")


def test_an_engine_that_fails_leaves_valid_output(mf: Mf, coffee: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mfcli.inference.engines.onnxruntime import OnnxRuntimeEngine

    compute, usual = OnnxRuntimeEngine.compute, []

    def fail_on_another(self: OnnxRuntimeEngine, batch: Any) -> Any:
        usual.append(batch)
        if (batch != usual[0]).any():
            raise EngineError("out of order")
        return compute(self, batch)

    monkeypatch.setattr(OnnxRuntimeEngine, "compute", fail_on_another)
    options = ("-q", "--format", "json", "-j", "1", "-b", "1")
    assert mf("predict", coffee, *options).code == 0  # the usual picture is the first that the engine sees
    ran = mf("predict", coffee, coffee, CHECKOUT / "examples" / "lemon.jpg", coffee, *options)
    assert (ran.code, ran.err) == (7, "error: out of order\n")
    summary = {"inputs": 2, "ok": 2, "failed": 0, "left_out": {}, "complete": False}
    assert json.loads(ran.out)["summary"] == summary


@pytest.mark.slow
def test_an_interrupt_leaves_valid_output(coffee: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with out.open("wb") as stream:
        command = [sys.executable, "-m", "mfcli", "predict", "-q", "--format", "json", *[str(coffee)] * 3000]
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while out.stat().st_size < 10_000 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    document = json.loads(out.read_text())
    assert process.returncode in AFTER_CTRL_C
    assert b"Traceback" not in err
    assert 0 < len(document["results"]) < 3000
    assert document["summary"]["inputs"] == len(document["results"])


def test_an_unexpected_permission_error_names_its_file(mf: Mf, coffee: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mfcli.tasks import predict as task

    def broken(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr(task, "predict", broken)
    ran = mf("predict", coffee, "-q")
    assert (ran.code, ran.err) == (
        8,
        "error: cannot use /somewhere: Permission denied\n"
        "hint: check its permissions: ls -ld; MF_DEBUG=1 shows where\n",
    )


def test_a_library_that_cannot_be_loaded_is_not_blamed_on_the_output(
    mf: Mf, coffee: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mfcli.tasks import predict as task

    def broken(*_: object, **__: object) -> None:
        raise OSError("libnope.so: cannot open shared object file")  # as ctypes says it, without a number

    monkeypatch.setattr(task, "predict", broken)
    assert mf("predict", coffee, "-q").err.startswith("error: unexpected OSError: libnope.so: cannot open")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--", "--"), "error: No such command '--'.\nhint: mf --help\n"),
        (
            ("completion",),
            "error: Missing argument 'SHELL'. Choose from: bash, zsh, fish\nhint: mf completion --help\n",
        ),
        (("predict", "x", "-j", "1e6"), "error: Invalid value for '--workers' / '-j': '1e6' is not a whole number.\n"),
        (("predict", "x", "--timeout", "1s"), "error: Invalid value for '--timeout': '1s' is not a number.\n"),
        (("predict", "x", "-b", "9" * 5000), f"error: --batch-size '{'9' * 5000}' is neither a number"),
    ],
)
def test_odd_command_lines(arguments: tuple[str, ...], message: str, mf: Mf) -> None:
    ran = mf(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(message)


def test_widths_that_are_none(mf_process: Callable[..., Ran]) -> None:
    for value in ("abc", "\u00b2"):
        ran = mf_process("--help", TERMINAL_WIDTH=value, COLUMNS=value, LINES=value)
        assert (ran.code, ran.err) == (0, "")
        assert "Usage: mf" in ran.out


def test_nothing_is_measured_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    from mfcli.tasks import benchmark as task

    monkeypatch.setattr(task, "benchmark", None)
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["benchmark", "bundled"]) == 8


def test_a_cache_that_cannot_be_looked_at(mf: Mf, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = "/" + "x" * 300  # as unseen as one that may not be entered
    monkeypatch.setenv("MF_CACHE_DIR", cache)
    assert mf("list-models", "--downloaded").code == 0
    assert mf("info", "bundled").code == 0
    listed = mf("cache", "ls")
    assert (listed.code, listed.err) == (
        8,
        f"error: cannot read the cache {cache}: File name too long\nhint: name another folder: MF_CACHE_DIR=DIR\n",
    )


def test_a_bug_is_reported_as_one(mf: Mf, coffee: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mfcli.tasks import predict as task

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(task, "predict", broken)
    ran = mf("predict", coffee, "-q")
    assert ran.code == 1
    assert ran.err == (
        "error: unexpected ZeroDivisionError: oops\nhint: this is a bug; MF_DEBUG=1 shows where it happened\n"
    )
    monkeypatch.setenv("MF_DEBUG", "1")
    assert "Traceback" in mf("predict", coffee, "-q").err


def test_an_interrupt_during_the_imports(mf_process: Mf, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nos.times()\n")
    ran = mf_process("--help", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert (ran.code, ran.out, ran.err) == (-signal.SIGINT, "", "")
