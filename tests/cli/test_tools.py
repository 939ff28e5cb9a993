"""The commands mf benchmark, mf doctor and mf completion."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mfcli
from conftest import Ran
from mfcli.models.registry import list_variants
from mfcli.tasks import doctor as doctor_task

Mf = Callable[..., Ran]
NAMES = [variant.name for variant in list_variants()]


@pytest.fixture
def no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make importing torch fail at once in the processes that a test starts."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(mfcli.__file__).parents[1]}")


@pytest.mark.slow
def test_benchmark_writes_a_table(mf: Mf, coffee: Path) -> None:
    ran = mf("benchmark", "--images", coffee, "--seconds", "0.1", "--rounds", "1", "-b", "1", "-b", "2", "-q")
    header, *rows = ran.out.splitlines()
    assert (ran.code, ran.err, len(rows)) == (0, "", 2)
    assert header.split()[:5] == ["model", "engine", "precision", "device", "batch"]
    assert "error" not in header


@pytest.mark.slow
@pytest.mark.usefixtures("no_torch")
def test_benchmark_reports_rows_with_an_error(mf: Mf, coffee: Path) -> None:
    quick = ("--images", coffee, "-b", "1", "--seconds", "0.1", "--rounds", "1", "-q")
    ran = mf("benchmark", "--engine", "auto", "--engine", "torch", "--format", "csv", *quick)
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert ran.code == 5
    assert [(row["model"], row["engine"]) for row in rows] == [
        ("convformer_t8_64", "onnxruntime"),
        ("convformer_t8_64", "torch"),
    ]
    assert float(rows[0]["images_per_s"]) > 0
    assert (rows[0]["error"], rows[1]["images_per_s"]) == ("", "")
    assert f"error: {rows[1]['error']}" in ran.err
    assert mf("benchmark", "--engine", "torch", *quick).code == 6


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("-b", "0"), 2, "--batch-size '0' is neither a number from 1 to 4096 nor auto"),
        (("nothing_s18",), 4, "unknown model 'nothing_s18'"),
        (("--rounds", "0"), 2, "--rounds"),
    ],
)
def test_benchmark_with_wrong_arguments(mf: Mf, arguments: tuple[str, ...], code: int, message: str) -> None:
    ran = mf("benchmark", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err


@pytest.mark.parametrize("works", [True, False])
def test_doctor(mf: Mf, monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    monkeypatch.setattr(doctor_task, "find_spec", lambda name: (works and name == "onnxruntime") or None)
    table, document = mf("doctor"), mf("doctor", "--format", "json")
    assert table.code == document.code == (0 if works else 9)
    found = json.loads(document.out)
    assert (found["schema"], found["works"]) == ("mf.doctor/1", works)
    names = [finding["name"] for finding in found["findings"]]
    assert [line.split()[0] for line in table.out.splitlines() if line[:2] == "  " and line[2] != " "] == names
    assert ("  onnxruntime         ok " in table.out) == works
    if not works:
        assert "hint: pip install onnxruntime" in table.out
        assert table.err.startswith("error: the bundled model or the default engine does not work here\nhint: ")


@pytest.fixture
def completed(tmp_path: Path) -> Callable[..., list[str]]:
    """Return the completions that the script gives bash after these words."""
    (tmp_path / "mf").write_text(f'#!/bin/sh\nexec {sys.executable} -m mfcli "$@"\n')
    (tmp_path / "mf").chmod(0o755)
    program = """
eval "$(mf completion bash)"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mf_completion mf
printf '%s\\n' "${COMPREPLY[@]}"
"""

    def run(*words: str) -> list[str]:
        path = f"{tmp_path}:{os.environ['PATH']}"
        command = ["bash", "-c", program, "bash", "mf", *words]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60, env=os.environ | {"PATH": path}
        )
        assert not done.stderr
        return done.stdout.split()

    return run


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("compl",), ["completion"]),
        (("cache", "v"), ["verify"]),
        (("predict", "--no-e"), ["--no-exif"]),
        (("list-models", "--family", "caf"), ["caformer"]),
        (("list-models", "--family", "=", "caf"), ["caformer"]),
        (("completion", ""), ["bash", "zsh", "fish"]),
        (("info", "caformer_b36"), [name for name in NAMES if name.startswith("caformer_b36")]),
        (("info", "caformer_b36.sail_in1k"), ["caformer_b36.sail_in1k", "caformer_b36.sail_in1k_384"]),
        (("download", "caformer_s18", "bund"), ["bundled"]),
        (("benchmark", "randformer_s1"), ["randformer_s12"]),
        (("benchmark", "--device", "c"), ["cpu", "cuda"]),
        (("benchmark", "--weights", "/t"), []),
    ],
)
def test_bash_completes(completed: Callable[..., list[str]], words: tuple[str, ...], expected: list[str]) -> None:
    assert completed(*words) == expected


def test_scripts_request_completions_from_mf(mf: Mf) -> None:
    for shell in ("bash", "zsh", "fish"):
        ran = mf("completion", shell)
        assert (ran.code, ran.err) == (0, "")
        assert f"_MF_COMPLETE=complete_{shell}" in ran.out
    assert mf("completion", "tcsh").code == 2


@pytest.mark.parametrize(("shell", "option"), [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")])
def test_the_shell_accepts_the_script(mf: Mf, shell: str, option: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    read = subprocess.run([shell, option], input=mf("completion", shell).out, text=True, capture_output=True)
    assert (read.returncode, read.stderr) == (0, "")


def request_completions(**environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mfcli"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_zsh_and_fish_get_descriptions() -> None:
    zsh = request_completions(_MF_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="mf doc")
    assert zsh.stdout.startswith("""_arguments '*: :(("doctor":"Find out""")
    assert request_completions(_MF_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="mf predict ").stdout == "_files\n"
    fish = {"_MF_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": "mf info bund"}
    assert request_completions(_TYPER_COMPLETE_FISH_ACTION="get-args", **fish).stdout == "bundled\n"
    assert request_completions(_TYPER_COMPLETE_FISH_ACTION="is-args", **fish).returncode == 0
    fish["_TYPER_COMPLETE_ARGS"] = "mf predict "
    assert request_completions(_TYPER_COMPLETE_FISH_ACTION="is-args", **fish).returncode == 1


@pytest.mark.parametrize("environment", [{"_MF_COMPLETE": "complete_tcsh"}, {"_MF_COMPLETE": "complete_bash"}])
def test_malformed_requests_fail_silently(environment: dict[str, str]) -> None:
    ran = request_completions(**environment)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "Traceback" not in ran.stderr
