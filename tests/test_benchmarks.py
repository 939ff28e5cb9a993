"""The benchmark scripts run: their quick modes, whose figures mean nothing, print whole tables."""

import subprocess
import sys
from pathlib import Path

import pytest

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
        ("engine.py", [], ["plain export", "onnxruntime fp32"]),
    ],
)
def test_a_benchmark_prints_its_table(script: str, arguments: list[str], rows: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(CHECKOUT / "benchmarks" / script), *arguments, "--quick"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row for row in rows if f"\n{row} " not in done.stdout] == [], done.stdout
