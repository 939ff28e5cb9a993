"""Measure mf plan, its status and its finish, with made-up names and parts of made-up rows.

    python benchmarks/plan.py --names 1000000

The names are in a list, and there are no such files. The parts are written by the writer of mf predict, which takes
most of the time; the table shows it as well. Each step is a process of its own, of which the table has the seconds,
those of processor time, and the largest resident memory. 10 million names take 2 GB on the disk.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mfcli.inputs.plan import Plan
from mfcli.outputs import open_writer
from mfcli.outputs.parts import PartFolder
from mfcli.outputs.writer import FormatName
from mfcli.results import PictureResult, Prediction
from mfcli.runs import RunInfo, RunSettings, Summary

RUN = RunInfo("made-up", "0" * 64, "0123456789abcdef", "onnxruntime", "fp32", 5)
PREDICTIONS = tuple(Prediction(rank, 100 * rank, f"n{rank:08}", f"class {rank}", 0.5**rank) for rank in range(1, 6))


def write_names(path: Path, count: int) -> None:
    """Write a list of names."""
    with path.open("w") as file:
        for number in range(count):
            file.write(f"photos/{number // 10_000:05}/IMG_{number:010}.jpg\n")


def write_parts(plan: Plan, parts: PartFolder) -> None:
    """Write a part of made-up rows for each shard."""
    parts.prepare()
    parts.claim(plan.digest, RunSettings(RUN.run or "", {}))
    for shard in range(len(plan.sha256)):
        count = 0
        with parts.open(shard, lambda stream: open_writer(FormatName.PARQUET, stream, compact=True)) as writer:
            writer.begin(RUN)
            for name, member in plan.names(shard):
                writer.write(PictureResult(name, None, member, 640, 480, PREDICTIONS, None, RUN))
                count += 1
            summary = Summary(count, count, 0, complete=True)
            writer.end(summary)
        parts.write_counts(shard, summary, 1.0)


def run(title: str, command: Sequence[str | Path], folder: Path) -> None:
    """Run a step in a process of its own, and print what it took."""
    started_s = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{title} ended with exit code {process.returncode}")
    seconds = f"{time.perf_counter() - started_s:10.1f}{usage.ru_utime + usage.ru_stime:10.1f}"
    print(f"{title:18}{seconds}{usage.ru_maxrss / 1024:10.0f}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=1_000_000, help="(default 1000000)")
    parser.add_argument("--quick", action="store_true", help="12,000 names")
    parser.add_argument("--write-parts", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write_parts:
        write_parts(Plan.read(Path("plan")), PartFolder(Path("out"), FormatName.PARQUET))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_names(folder / "names", 12_000 if arguments.quick else arguments.names)
        print(f"{'':18}{'s':>10}{'CPU s':>10}{'MiB':>10}")
        mf = [sys.executable, "-m", "mfcli"]
        run("mf plan", [*mf, "plan", "-q", "--files-from", "names", "-o", "plan"], folder)
        run("writing parts", [sys.executable, Path(__file__).resolve(), "--write-parts"], folder)
        run("mf plan status", [*mf, "plan", "status", "plan", "out"], folder)
        run("mf plan finish", [*mf, "plan", "finish", "plan", "out"], folder)


if __name__ == "__main__":
    main()
