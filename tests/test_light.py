"""The light environment, in which torch and timm are not installed: the same answers, and clear errors."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mfcli
from conftest import CHECKOUT, Ran
from mfcli.models.checkpoint import write_random
from mfcli.models.registry import find_variant

pytestmark = pytest.mark.slow

Mf = Callable[..., Ran]
NAME = "poolformerv2_s12"
NOT_INSTALLED = "error: torch and timm are not installed\nhint: pip install torch timm\n"


@pytest.fixture
def without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch and timm impossible to import in the processes that a test starts."""
    program = "import sys\nsys.modules.update(dict.fromkeys(['torch', 'torchvision', 'timm']))\n"
    (tmp_path / "sitecustomize.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(mfcli.__file__).parents[1]}")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "random.safetensors"
    write_random(path, find_variant(NAME))
    return path


def read_artifact(cache: Path) -> bytes:
    (path,) = (cache / "artifacts").glob("*.onnx")
    return path.read_bytes()


@pytest.mark.usefixtures("without_torch")
def test_the_bundled_model_gives_the_same_answers(mf: Mf, mf_process: Mf) -> None:
    command = ("predict", CHECKOUT / "examples", "--format", "jsonl", "-q")
    ran = mf_process(*command)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == mf(*command).out


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_checkpoint_gives_the_same_artifact_and_answers(
    suffix: str, mf: Mf, mf_process: Mf, weights: Path, coffee: Path, tmp_path: Path
) -> None:
    if suffix == "pth":
        import torch
        from safetensors.torch import load_file

        state = load_file(weights)
        weights = weights.with_suffix(".pth")
        torch.save(state, weights)
    command = ("predict", coffee, "-m", NAME, "--weights", weights, "--format", "jsonl", "-q")
    light = mf_process(*command, MF_CACHE_DIR=str(tmp_path / "light"))
    full = mf(*command)
    assert (light.code, light.err) == (0, "")
    assert light.out == full.out
    assert read_artifact(tmp_path / "light") == read_artifact(Path(os.environ["MF_CACHE_DIR"]))


@pytest.mark.usefixtures("without_torch")
def test_every_other_command_works(mf_process: Mf, weights: Path) -> None:
    quick = ("--seconds", "0.1", "--rounds", "1", "-q")
    for command in (
        ("download", NAME, "--from", weights),
        ("download", NAME, "--offline", "--dry-run"),
        ("list-models", "--downloaded"),
        ("info", NAME),
        ("cache", "ls"),
        ("cache", "verify"),
        ("cache", "prune", "--checkpoints"),
        ("benchmark", "bundled", *quick),
        ("cache", "rm", NAME),
        ("completion", "bash"),
    ):
        ran = mf_process(*command)
        assert ran.code == 0, (command, ran.err)


@pytest.mark.usefixtures("without_torch")
def test_doctor_states_that_torch_is_not_installed(mf_process: Mf) -> None:
    ran = mf_process("doctor", "--format", "json")
    report = json.loads(ran.out)
    (torch,) = (f for f in report["findings"] if (f["group"], f["name"]) == ("engines", "torch"))
    assert (ran.code, report["works"], torch["status"]) == (0, True, "fact")
    assert torch["value"].startswith("not installed, needed for GPUs")
    assert torch["hint"] == "pip install torch timm"


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize(
    "command",
    [
        ("predict", CHECKOUT / "examples" / "orange.jpg", "--engine", "torch"),
        ("predict", CHECKOUT / "examples" / "orange.jpg", "--device", "cuda"),
        ("download", NAME, "--check"),
        ("cache", "verify", "--against-torch"),
    ],
    ids=lambda command: command[-1],
)
def test_what_needs_torch_says_what_to_install(command: tuple[str | Path, ...], mf_process: Mf) -> None:
    ran = mf_process(*command)
    assert (ran.code, ran.out, ran.err) == (7, "", NOT_INSTALLED)


@pytest.mark.usefixtures("without_torch")
def test_a_comparison_and_create_model_say_what_to_install(mf_process: Mf, weights: Path, coffee: Path) -> None:
    for more in (("--weights", weights), ()):  # without, before the download
        ran = mf_process("predict", coffee, "-m", NAME, *more, "-q", MF_CHECK="1")
        assert (ran.code, ran.err) == (7, NOT_INSTALLED)
    program = (
        "import mfcli, mfcli.errors\n"
        "try: mfcli.create_model\n"
        "except mfcli.errors.EngineError as error: print(f'error: {error.message}\\nhint: {error.hint}')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == NOT_INSTALLED


@pytest.mark.usefixtures("without_torch")
def test_a_format_that_only_torch_reads(mf_process: Mf, coffee: Path, tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    ran = mf_process("predict", coffee, "-q", "--weights", tmp_path / "old.pth")
    assert ran.code == 4
    assert "is in a format that only torch reads: not torch's zip format" in ran.err
    assert "hint: install torch, or save the weights again: torch.save(model.state_dict(), FILE)" in ran.err


def test_the_light_requirements_are_those_of_the_package() -> None:
    import tomllib

    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    direct = {Requirement(text).name: Requirement(text).specifier for text in project["dependencies"]}
    lines = (CHECKOUT / "requirements-light.txt").read_text().splitlines()
    pinned = [Requirement(line.removesuffix("\\")) for line in lines if line and line[0] not in " #"]
    assert {requirement.name for requirement in pinned} >= direct.keys() - {"torch", "timm"}
    assert not {requirement.name for requirement in pinned} & {"torch", "torchvision", "timm"}
    for requirement in pinned:
        (version,) = (specifier.version for specifier in requirement.specifier)
        assert version in direct.get(requirement.name, SpecifierSet()), requirement
