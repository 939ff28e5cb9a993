"""Packaging: wheel, sdist and editable installation contain the bundled model and classify with it."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from conftest import CHECKOUT

SHIPPED = {
    f"mfcli/bundled/{name}"
    for name in ("convformer_t8_64.onnx", "convformer_t8_64.json", "convformer_t8_64.safetensors", "README.md")
} | {f"mfcli/models/data/{name}" for name in ("imagenet.tsv.gz", "WORDNET_LICENSE")}


def build(folder: Path, source: Path, kind: str) -> Path:
    program = "import sys; from hatchling import build; print(getattr(build, sys.argv[2])(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), f"build_{kind}"],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    )
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"), CHECKOUT, "wheel")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sdist"), CHECKOUT, "sdist")


def assert_answers(path: Path, tmp_path: Path) -> None:
    """Check that the package in `path` works from its own files, without the checkout's."""
    program = (
        "import sys, mfcli; from mfcli.hub.bundled import bundled_file; from mfcli.cli import main;"
        "print(mfcli.__file__, bundled_file('convformer_t8_64.onnx'), sep='\\n', file=sys.stderr);"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "predict", str(CHECKOUT / "examples" / "orange.jpg"), "-q", "--format", "csv"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(line.startswith(str(path)) for line in done.stderr.splitlines()), done.stderr
    assert ",ok,convformer_t8_64,448,448,orange,n07747607," in done.stdout


@pytest.mark.slow
def test_the_wheel_carries_the_model_and_answers(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert names >= SHIPPED
    assert "mfcli/py.typed" in names
    assert {name.partition("/licenses/")[2] for name in names if "/licenses/" in name} == {
        "LICENSE",
        "src/mfcli/models/data/WORDNET_LICENSE",
    }
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "shared"))]
    assert_answers(tmp_path / "site", tmp_path)


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (source / "README.md").is_file()
    assert (source / "src" / "mfcli" / "models" / "data" / "WORDNET_LICENSE").is_file()
    assert (source / "tests" / "golden" / "logits.json").is_file()
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(build(tmp_path, source, "wheel")) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())
        assert {i.filename: i.CRC for i in one.infolist()} == {i.filename: i.CRC for i in other.infolist()}


@pytest.mark.slow
def test_an_editable_installation_finds_the_checkouts_weights(tmp_path: Path) -> None:
    with zipfile.ZipFile(build(tmp_path, CHECKOUT, "editable")) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        "import site, sys; sys.path.pop(0); site.addsitedir(sys.argv[1]); sys.path.reverse();"
        "from mfcli.hub.bundled import bundled_file; print(bundled_file('convformer_t8_64.onnx'))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "site")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == CHECKOUT / "weights" / "convformer_t8_64.onnx"
