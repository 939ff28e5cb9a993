"""What a command may import: no torch where there is an artifact, nothing heavy for help."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mfcli.settings import usable_cores

HEAVY = ("torch", "timm", "torchvision", "onnx", "onnxscript", "safetensors", "requests")

COMMANDS = {f"mfcli.cli.{name}" for name in ("benchmark", "cache", "convert", "doctor", "models", "predict")}


def modules_after(*arguments: str) -> set[str]:
    program = (
        "import sys; from mfcli.cli import main; code = main(sys.argv[1:]);"
        "print(code, *filter(sys.modules.get, sys.modules), sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    code, *modules = done.stderr.splitlines()[-5000:]
    assert code == "0", done.stderr
    return set(modules)


@pytest.mark.slow
def test_the_guard_sees_an_import() -> None:
    program = "import torch, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "True\n"


@pytest.mark.parametrize("format", ["table", "json", "jsonl", "csv", "tsv"])
def test_predict_imports_neither_torch_nor_timm(format: str, coffee: Path) -> None:
    modules = modules_after("predict", str(coffee), "--format", format, "-q")
    assert "onnxruntime" in modules
    assert not modules & set(HEAVY)
    assert ("rich" in modules) == (format == "table")
    assert {name for name in modules if name.startswith("mfcli.cli.")} & COMMANDS == {"mfcli.cli.predict"}


@pytest.mark.slow
def test_a_cached_artifact_needs_no_torch(coffee: Path, small_weights: Path) -> None:
    from mfcli.artifact.ensure import ensure_artifact
    from mfcli.models.registry import find_variant
    from mfcli.settings import Settings

    ensure_artifact(find_variant("bundled"), small_weights, Settings.from_environ())
    command = ("predict", str(coffee), "-m", "bundled", "--weights", str(small_weights), "-q", "-k", "7")
    assert not modules_after(*command) & set(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["predict", "--help"],
        ["list-models"],
        ["benchmark", "--help"],
        ["doctor", "--help"],
        ["completion", "bash"],
    ],
)
def test_help_and_lists_import_no_engine(arguments: list[str]) -> None:
    assert not modules_after(*arguments) & {*HEAVY, "onnxruntime", "numpy", "PIL"}


def test_completing_imports_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MF_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "mf\ninfo\ncaf")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert not modules_after() & {*HEAVY, "onnxruntime", "numpy", "PIL", "rich"}


def test_importing_the_package_costs_nothing() -> None:
    program = "import sys, mfcli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert {name for name in modules if name.startswith("mfcli")} == {"mfcli", "mfcli.version"}
    assert not modules & {*HEAVY, "typer", "rich", "numpy", "PIL"}


def test_public_names() -> None:
    import mfcli

    assert dir(mfcli) == sorted(mfcli.__all__)
    assert all(getattr(mfcli, name) for name in mfcli.__all__)
    program = Path(mfcli.__file__).read_text().partition("if TYPE_CHECKING:")[2].partition("\n\n")[0]
    imported = re.findall(r"from (\S+) import (.+)", program)
    assert {module: names.replace(",", "") for module, names in imported} == mfcli._MODULES
    with pytest.raises(AttributeError):
        _ = mfcli.nothing


@pytest.mark.skipif(not Path("/proc/self/task").exists() or usable_cores() < 2, reason="counts Linux's threads")
def test_numpy_starts_no_threads_for_a_first_answer() -> None:
    program = (
        "import os; from mfcli.cli.requests import import_numpy; import_numpy()\n"
        "print(len(os.listdir('/proc/self/task')), 'OPENBLAS_NUM_THREADS' in os.environ)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1 False\n"
