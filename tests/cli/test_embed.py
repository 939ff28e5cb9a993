"""mf embed: features in both formats, rows for failures, and nothing half written."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import mfcli
from conftest import CHECKOUT, Ran

Mf = Callable[..., Ran]
ORANGE, LEMON = CHECKOUT / "examples" / "orange.jpg", CHECKOUT / "examples" / "lemon.jpg"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no picture")
    return path


@pytest.fixture
def expected() -> NDArray[np.float32]:
    results = mfcli.load_predictor("bundled").embed([ORANGE, LEMON])
    return np.stack([result.features for result in results if result.features is not None])


def test_npz(mf: Mf, broken: Path, expected: NDArray[np.float32], tmp_path: Path) -> None:
    out = tmp_path / "features.npz"
    ran = mf("embed", ORANGE, broken, LEMON, "-o", out)
    assert (ran.code, ran.out) == (5, "")
    assert f"3 pictures: 2 embedded, 1 failed; {out}" in ran.err
    file = np.load(out)
    assert file["input"].tolist() == [str(ORANGE), str(broken), str(LEMON)]
    assert file["status"].tolist() == ["ok", "error", "ok"]
    assert file["error_code"].tolist() == ["", "unsupported", ""]
    assert (file["width"][1], file["width"][0] > 0, str(file["model"])) == (0, True, "convformer_t8_64")
    assert np.array_equal(file["features"][[0, 2]], expected)
    assert np.isnan(file["features"][1]).all()


def test_parquet(mf: Mf, broken: Path, expected: NDArray[np.float32], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "features.parquet"
    assert mf("embed", broken, ORANGE, LEMON, "-o", out, "--allow-failures").code == 0
    table = parquet.read_table(out)
    assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[320]"
    rows: list[dict[str, Any]] = table.to_pylist()
    assert [(row["input"], row["status"], row["error_code"]) for row in rows] == [
        (str(broken), "error", "unsupported"),
        (str(ORANGE), "ok", None),
        (str(LEMON), "ok", None),
    ]
    assert rows[0]["features"] is None
    assert np.array_equal(np.array([row["features"] for row in rows[1:]], np.float32), expected)
    predicted = json.loads(mf("predict", ORANGE, "--format", "jsonl").out)
    assert table.schema.metadata[b"weights_sha256"].decode() == predicted["weights_sha256"]


def test_all_failed(mf: Mf, broken: Path, tmp_path: Path) -> None:
    for suffix in ("npz", "parquet"):
        assert mf("embed", broken, "-o", tmp_path / f"a.{suffix}").code == 6
    assert np.load(tmp_path / "a.npz")["features"].shape == (1, 0)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_a_killed_run_is_resumed(suffix: str, mf: Mf, broken: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / f"features.{suffix}", tmp_path / f"whole.{suffix}"
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    assert mf("embed", ORANGE, broken, LEMON, "-o", whole, "-q").code == 5
    command = [sys.executable, "-m", "mfcli", "embed", "--files-from", "-", "-o", str(out), "-q"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as run:
        assert run.stdin is not None
        run.stdin.write(f"{ORANGE}\n{broken}\n".encode())
        run.stdin.flush()
        partial = Path(f"{out}.partial")
        while not (partial.exists() and partial.read_bytes().count(b"\n") == 2):
            time.sleep(0.05)
        run.kill()
    assert mf("embed", ORANGE, broken, LEMON, "-o", out).code == 8
    broken.write_bytes(LEMON.read_bytes())  # its row is there already
    for words in ("3 pictures: 2 embedded, 1 failed", "nothing was left to do"):
        ran = mf("embed", ORANGE, broken, LEMON, "-o", out, "--resume")
        assert (ran.code, words in ran.err, partial.exists()) == (5, True, False)
        assert out.read_bytes() == whole.read_bytes()
    assert mf("embed", ORANGE, broken, LEMON, ORANGE, "-o", out, "--retry-failed").code == 0
    assert mf("embed", ORANGE, broken, LEMON, ORANGE, "-o", whole, "--overwrite", "-q").code == 0
    assert out.read_bytes() == whole.read_bytes()


def test_another_model_does_not_go_on(mf: Mf, tmp_path: Path) -> None:
    out = tmp_path / "features.npz"
    assert mf("embed", ORANGE, "-o", out, "-q").code == 0
    ran = mf("embed", ORANGE, LEMON, "-o", out, "--resume", "--no-exif")
    assert (ran.code, "belongs to a different run" in ran.err) == (8, True)


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [("a.csv", 2, "neither .npz nor .parquet"), ("there.npz", 8, "exists"), ("no/a.npz", 8, "there is no folder")],
)
def test_the_output_is_checked_first(name: str, code: int, message: str, mf: Mf, tmp_path: Path) -> None:
    (tmp_path / "there.npz").write_bytes(b"mine")
    ran = mf("embed", tmp_path / "missing.jpg", "-o", tmp_path / name)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert (tmp_path / "there.npz").read_bytes() == b"mine"


def test_overwrite_replaces_only_at_the_end(mf: Mf, tmp_path: Path) -> None:
    out = tmp_path / "there.npz"
    out.write_bytes(b"mine")
    assert mf("embed", tmp_path, "-o", out, "--overwrite").code == 3
    assert out.read_bytes() == b"mine"
    assert mf("embed", ORANGE, "-o", out, "--overwrite", "-q").code == 0
    assert np.load(out)["features"].shape == (1, 320)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".there.npz.run", "there.npz"]


def test_the_list_of_inputs_is_not_overwritten(mf: Mf, tmp_path: Path) -> None:
    listed = tmp_path / "list.npz"
    listed.write_text(f"{ORANGE}\n")
    ran = mf("embed", "--files-from", listed, "-o", listed, "--overwrite")
    assert (ran.code, f"{listed} is an input" in ran.err, listed.read_text()) == (8, True, f"{ORANGE}\n")


def test_rows_name_the_commands_own_options(mf: Mf, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.ico")
    assert mf("embed", tmp_path / "x.ico", "-o", tmp_path / "x.npz").code == 6
    assert np.load(tmp_path / "x.npz")["error_message"][0].endswith(": --formats ico")


def test_parquet_without_pyarrow(mf: Mf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ran = mf("embed", ORANGE, "-o", tmp_path / "a.parquet")
    assert (ran.code, ran.err) == (
        7,
        "error: pyarrow is not installed\nhint: pip install 'metaformer-cli[scale]'\n",
    )
