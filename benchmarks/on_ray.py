"""Measure `mf predict --ray local` against one process, and kill workers and nodes of a Ray cluster under it.

    python benchmarks/on_ray.py speed            # 4,000 pictures of about 500x375 pixels, in shards of 250
    python benchmarks/on_ray.py kills            # 20,000 of 64x64 pixels, in shards of 100, on four nodes of one core

speed: the rate is that of the parts after the first one, so that start-up does not count; both runs alternate, and the
table has the medians. kills: 50 workers are killed (SIGKILL) in the middle of their work, and 3 nodes with all their
processes, each of which is replaced by a new one; then `mf plan finish` and a comparison with one run without Ray say
whether every input has exactly one row. The exit code is 1 if not. Needs `pip install '.[ray]'` and an otherwise idle
machine.
"""

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from mfcli.synthetic import make_picture, write_jpegs

PHOTOS, PICTURES = 300, 20_000
SHARD_SIZE = {"speed": 250, "kills": 100}
NODES = 4
STORE_BYTES = 80_000_000


def mf(*arguments: str) -> None:
    """Run a command, which may find pictures that fail."""
    subprocess.run([sys.executable, "-m", "mfcli", *arguments], check=True)


def plan(names: Sequence[str], shard_size: int) -> None:
    """Write the folder `plan`."""
    Path("names").write_text("\n".join(names))
    mf("plan", "--files-from", "names", "-o", "plan", "--shard-size", str(shard_size), "-q")


def list_parts(out: Path) -> list[Path]:
    """Return the parts that are there, in order."""
    return sorted(out.glob("part-*"))


def measure_rate(out: Path, arguments: Sequence[str]) -> tuple[float, float]:
    """Return the pictures per second after the first part, and the seconds of the whole run."""
    started = time.monotonic()
    mf("predict", "--plan", "plan", "-o", str(out), "-q", *arguments)
    total_s = time.monotonic() - started
    ends = [part.stat().st_mtime for part in list_parts(out)]
    return (len(ends) - 1) * SHARD_SIZE["speed"] / (max(ends) - min(ends)), total_s


def compare_speed(inputs: int, rounds: int, threads: str | None) -> None:
    """Print the table of rates."""
    Path("photos").mkdir()
    paths = write_jpegs(Path("photos"), PHOTOS)
    plan([str(path) for path in islice(cycle(paths), inputs)], SHARD_SIZE["speed"])
    local = ["--ray", "local", *(["--threads", threads] if threads else [])]
    kinds: dict[str, list[str]] = {"one process": [], "Ray local": local}
    measured: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for number in range(rounds):
        for kind, arguments in kinds.items():
            measured[kind].append(measure_rate(Path(f"out-{kind[0]}-{number}"), arguments))
    for kind, runs in measured.items():
        rate, total_s = (statistics.median(values) for values in zip(*runs, strict=True))
        print(f"{kind:12} {rate:8.1f} pictures/s {total_s:8.1f} s with start-up")
    ratios = [ray[0] / one[0] for one, ray in zip(measured["one process"], measured["Ray local"], strict=True)]
    print(f"ratio {statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")


def find_workers(nodes: Sequence[Any]) -> list[int]:
    """Return the processes of actors on some nodes."""
    raylets = {node.all_processes["raylet"][0].process.pid for node in nodes if "raylet" in node.all_processes}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and (folder / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                found.append(int(folder.name))
    return found


@contextlib.contextmanager
def start_cluster() -> Iterator[tuple[Any, list[Any]]]:
    """Yield a cluster, whose head does no work, and its other nodes."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(True, head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES})
    try:
        yield cluster, [add_node(cluster) for _ in range(NODES)]
    finally:
        cluster.shutdown()


def add_node(cluster: Any) -> Any:
    """Add a node of one core; Ray gives each 30 s to start, which may not do on a busy machine."""
    for _ in range(5):
        with contextlib.suppress(Exception):
            return cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    raise RuntimeError("a node cannot be started")


def kill_one(nodes: list[Any], cluster: Any, *, node: bool) -> None:
    """Kill a worker, or a node with all its processes."""
    if node:
        cluster.remove_node(nodes.pop(random.randrange(len(nodes))), allow_graceful=False)
        nodes.append(add_node(cluster))
        return
    while not (workers := find_workers(nodes)):
        time.sleep(0.05)
    os.kill(random.choice(workers), signal.SIGKILL)


def kill_under_way(inputs: int, workers: int, node_kills: int) -> int:
    """Return the exit code."""
    Path("photos").mkdir()
    names = [f"photos/{number:05}.jpg" for number in range(inputs)]
    for number, name in enumerate(names):
        make_picture(number, 64, 64).save(name, quality=90)
    plan(names, SHARD_SIZE["kills"])
    out, kills = Path("out"), workers + node_kills
    shards = len(list(Path("plan").glob("shard-*")))
    kinds = random.sample([True] * node_kills + [False] * workers, kills)
    with start_cluster() as (cluster, nodes):
        command = [sys.executable, "-m", "mfcli", "predict", "--plan", "plan", "-o", str(out), "--ray", cluster.address]
        started = time.monotonic()
        run = subprocess.Popen([*command, "--threads", "1", "-q"])
        for number, is_node in enumerate(kinds):  # spread over the work
            while len(list_parts(out)) < (number + 1) * shards // (kills + 2) and run.poll() is None:
                time.sleep(0.05)
            if run.poll() is not None:
                break
            kill_one(nodes, cluster, node=is_node)
            counts = f"{len(list_parts(out)):4} parts, {len(list(out.glob('.part-*'))):3} unfinished"
            print(
                f"{time.monotonic() - started:6.1f} s, {counts}: killed a {'node' if is_node else 'worker'}", flush=True
            )
        code = run.wait()
    print(f"mf predict --ray: exit code {code} after {time.monotonic() - started:.1f} s, {number + 1} kills")
    print("left behind:", [path.name for path in out.glob(".*")])
    mf("plan", "finish", "plan", str(out), "--format", "json")
    mf("predict", "--files-from", "names", "-o", "single.jsonl", "-q")
    is_equal = b"".join(part.read_bytes() for part in list_parts(out)) == Path("single.jsonl").read_bytes()
    print("merged = single run:", is_equal)
    return 0 if is_equal and code == 0 and number + 1 == kills else 1


def main() -> int:
    """Run the benchmark that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=SHARD_SIZE)
    parser.add_argument("--inputs", type=int, help="pictures")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", help="of each actor; None for mf's choice")
    parser.add_argument("--workers", type=int, default=50, help="workers to kill")
    parser.add_argument("--nodes", type=int, default=3, help="nodes to kill")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed")
    options = parser.parse_args()
    random.seed(options.seed)
    with tempfile.TemporaryDirectory(prefix="mf-ray-") as folder, contextlib.chdir(folder):
        if options.what == "kills":
            return kill_under_way(options.inputs or PICTURES, options.workers, options.nodes)
        compare_speed(options.inputs or 4000, options.rounds, options.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
