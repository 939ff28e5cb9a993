"""How long the first prediction of a model takes, which prepares it: without torch, and beside torch, in turn.

Every run starts with an empty cache and random weights of caformer_s18 in a local safetensors file. The peer is the
same command with MF_CHECK=1, which imports torch and compares the artifact with it, or the mf of another source tree:

    python benchmarks/first_predict.py examples/orange.jpg --rounds 5
    git worktree add /tmp/before TAG && python benchmarks/first_predict.py examples/orange.jpg --before /tmp/before/src
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mfcli.models.checkpoint import write_random
from mfcli.models.registry import find_variant

MODEL = "caformer_s18"
MAX_RATIO = 0.25


def measure(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command with an empty cache; return its wall time in seconds and its peak resident memory in MiB."""
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment | {"MF_CACHE_DIR": cache})
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - started
    if status:
        raise SystemExit(f"this command failed: {' '.join(command)}")
    return elapsed, usage.ru_maxrss / 1024


def main() -> int:
    """Measure and print; exit code 1 if the ratio is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--before", type=Path, help="a folder with another version of the package mfcli")
    parser.add_argument("--rounds", type=int, default=5, help="how often both run (default 5)")
    arguments = parser.parse_args()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MF_")}
    other = {"PYTHONPATH": str(arguments.before.resolve())} if arguments.before else {"MF_CHECK": "1"}
    environments = {"without torch": environment, "before" if arguments.before else "with torch": environment | other}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / f"{MODEL}.safetensors"
        write_random(weights, find_variant(MODEL))
        command = [sys.executable, "-m", "mfcli", "predict", str(arguments.picture), "--quiet"]
        command += ["--model", MODEL, "--weights", str(weights)]
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in environments}
        for round in range(arguments.rounds + 1):
            for name, variables in environments.items():
                run = measure(command, variables)
                if round:  # the first one fills the disk cache
                    found[name].append(run)
    for name, runs in found.items():
        seconds, memory = (statistics.median(values) for values in zip(*runs, strict=True))
        print(f"{name:16}{seconds:8.2f} s{memory:8.0f} MiB")
    ours, theirs = found.values()
    ratio = statistics.median(a / b for (a, _), (b, _) in zip(ours, theirs, strict=True))
    print(f"ratio of time, median of the rounds: {ratio:.2f} (<= {MAX_RATIO:g})")
    return ratio > MAX_RATIO


if __name__ == "__main__":
    sys.exit(main())
