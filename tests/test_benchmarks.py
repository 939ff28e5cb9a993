"""The benchmark scripts run: their quick modes, whose figures mean nothing, print whole tables."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import CHECKOUT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "rows"),
    [
        (
            "batch.py",
            [],
            ["timm, a loop", "timm, DataLoader", "onnxruntime, a loop", "onnxruntime, DataLoader", "mf predict"],
        ),
        ("cold_start.py", [str(CHECKOUT / "examples" / "orange.jpg")], ["timm script", "mf predict (caformer_s18)"]),
        ("cost.py", [], ["compute bundled", "all of it, 500x375, exact", "write a row of parquet"]),
        ("decode.py", [], ["Pillow, as in a notebook", "mf, scaled", "mf predict, exact", "mf predict, scaled"]),
        ("engine.py", [], ["plain export", "onnxruntime fp32"]),
        (
            "gpu.py",
            ["--device", "cpu", "--precision", "fp32"],
            ["decoding", "nvJPEG", "timm, DataLoader", "mf predict, scaled"],
        ),
        ("memory.py", [], ["        20", "       200"]),
        ("own_classes.py", [], ["generated"]),
        ("plan.py", [], ["mf plan", "writing parts", "mf plan status", "mf plan finish"]),
        ("scaled.py", [], ["exact", "scaled 2", "noise"]),
    ],
)
def test_a_benchmark_prints_its_table(script: str, arguments: list[str], rows: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(CHECKOUT / "benchmarks" / script), *arguments, "--quick"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row for row in rows if f"\n{row} " not in done.stdout] == [], done.stdout


@pytest.mark.slow
def test_the_benchmark_of_stores_prints_its_tables(tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    command = [sys.executable, str(CHECKOUT / "benchmarks" / "stores.py"), "--quick"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row for row in ("obstore", "local files", "store") if f"\n{row} " not in done.stdout] == [], done.stdout


@pytest.mark.slow
def test_figures_are_those_of_timms_validate(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(30):
        path = tmp_path / ("val" if number % 5 == 0 else "train") / f"n{number % 6:08}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 40 * (number % 6 + 1), (60, 90, 3), np.uint8)).save(path)
    command = [sys.executable, str(CHECKOUT / "benchmarks" / "evaluate.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "6 pictures" in done.stdout) == (0, True), done.stdout + done.stderr
