"""Measure that the memory of mf predict does not grow with the number of pictures, with Parquet in and out.

Parquet files of small PNGs are made, and each is classified by a process of its own:

    mf predict PICTURES.parquet -o ANSWERS.parquet

The memory of the process and of those that decode for it is added up twice a second (proportional set size, which
divides shared pages among their users). The table shows the peak and the median of the last quarter, when the answers
are converted. Linux only:

    python benchmarks/memory.py --rows 10000 300000
"""

import argparse
import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

SIDE = 8
DIFFERENT = 256
"""Different pictures."""
GROUP_ROWS = 10_000
INTERVAL_S = 0.5


def make_pngs() -> list[bytes]:
    """Return PNGs of 8x8 pixels in one colour each."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(DIFFERENT):
        file = io.BytesIO()
        Image.new("RGB", (SIDE, SIDE), tuple(random.integers(0, 256, 3).tolist())).save(file, "PNG")
        found.append(file.getvalue())
    return found


def write_pictures(path: Path, rows: int) -> None:
    """Write a Parquet file as Hugging Face stores pictures."""
    pngs = make_pngs()
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    schema = pyarrow.schema({"image": image})
    with parquet.ParquetWriter(path, schema) as file:
        for first in range(0, rows, GROUP_ROWS):
            numbers = range(first, min(rows, first + GROUP_ROWS))
            values = [{"bytes": pngs[number % DIFFERENT], "path": f"{number}.png"} for number in numbers]
            file.write_table(pyarrow.table({"image": values}, schema))


def iter_processes(root: int) -> Iterator[int]:
    """Yield a process and those below it."""
    yield root
    for children in Path(f"/proc/{root}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from iter_processes(int(child))


def measure_memory(root: int) -> float:
    """Return the memory of a process and of those below it, in MB."""
    total = 0
    for process in iter_processes(root):
        with contextlib.suppress(OSError):  # it has ended
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total / 1000


def run_mf(pictures: Path, answers: Path) -> tuple[float, list[float]]:
    """Classify pictures; return the seconds and the memory at each moment, in MB."""
    command = [sys.executable, "-m", "mfcli", "predict", "-q", str(pictures), "-o", str(answers)]
    started_s, found = time.perf_counter(), []
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                found.append(measure_memory(process.pid))
            time.sleep(INTERVAL_S)
    if process.returncode:
        raise SystemExit(f"mf predict ended with exit code {process.returncode}")
    return time.perf_counter() - started_s, found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 300_000], help="(default 10000 300000)")
    parser.add_argument("--quick", action="store_true", help="few rows")
    arguments = parser.parse_args()
    print(f"{'rows':>10}{'rows/s':>10}{'peak MB':>10}{'late MB':>10}{'ratio':>8}")
    first = None
    with tempfile.TemporaryDirectory() as name:
        for rows in [20, 200] if arguments.quick else arguments.rows:
            pictures, answers = Path(name, "pictures.parquet"), Path(name, f"{rows}.parquet")
            write_pictures(pictures, rows)
            seconds, memory = run_mf(pictures, answers)
            assert parquet.read_metadata(answers).num_rows == rows
            late = statistics.median(memory[3 * len(memory) // 4 :])
            first = first or max(memory)
            print(
                f"{rows:10}{rows / seconds:10.0f}{max(memory):10.1f}{late:10.1f}{max(memory) / first:8.2f}", flush=True
            )


if __name__ == "__main__":
    main()
