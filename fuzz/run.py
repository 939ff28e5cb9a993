"""Fuzzing: python fuzz/run.py [TARGET...] [--seconds 600] [--corpus DIR]; exit code 1 if something was found.

Each target runs in a process of its own, with 4 GB of memory. Where atheris is installed, it chooses the inputs by what
they reach; otherwise they are random mutations. An input that crashes, or takes more than ten seconds, is kept in
`fuzz/found/`; `--replay FILE` runs one again.
"""

import argparse
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from importlib.util import find_spec
from pathlib import Path

if find_spec("atheris") and "--random" not in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["mfcli"]):  # what they reach is seen there
        from targets import TARGETS, list_seeds, run_target
else:
    from targets import TARGETS, list_seeds, run_target

FOUND = Path(__file__).parent / "found"
MAX_SECONDS = 10
_MAX_MEMORY = 4 * 2**30
_MAX_BYTES = 2**18
_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


class HangError(Exception):
    """An input that takes too long."""


def mutate(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Return a damaged copy: bits flipped, numbers replaced, parts cut, repeated, zeroed or taken from elsewhere."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at, length = chance.randrange(len(changed) + 1), int(2 ** chance.uniform(0, 10))
        match chance.randrange(7):
            case 0 if changed:
                changed[at % len(changed)] ^= 1 << chance.randrange(8)
            case 1:
                number = chance.choice(_INTERESTING)
                size = chance.choice((1, 2, 4, 8))
                changed[at : at + size] = (number % 256**size).to_bytes(size, chance.choice(("big", "little")))
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length] * chance.choice((1, 2, 50))
            case 4:
                changed[at : at + length] = bytes(len(changed[at : at + length]))
            case 5:
                start = chance.randrange(len(other) + 1)
                changed[at : at + length] = other[start : start + length]
            case _:
                del changed[at:]
    return bytes(changed[:_MAX_BYTES])


def check(target: str, data: bytes) -> None:
    """Run a target on an input within the time limit."""
    signal.alarm(MAX_SECONDS)
    began = time.monotonic()
    try:
        run_target(target, data)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        raise
    finally:
        signal.alarm(0)
    if time.monotonic() - began > MAX_SECONDS:  # in native code, which the alarm does not interrupt
        raise HangError


def _on_alarm(*_: object) -> None:
    raise HangError


def run_randomly(target: str, seconds: float, seed: int, seeds: list[bytes], current: Path) -> int:
    """Run mutations of the seeds until the time is over, and return how many; the input at work is in `current`."""
    chance, ends, count = random.Random(seed), time.monotonic() + seconds, 0
    while count < len(seeds) or time.monotonic() < ends:
        data = seeds[count] if count < len(seeds) else mutate(chance.choice(seeds), chance.choice(seeds), chance)
        current.write_bytes(data)
        check(target, data)
        count += 1
    return count


def run_with_atheris(target: str, seconds: float, seed: int, seeds: list[bytes], current: Path) -> None:
    """Let atheris choose the inputs; it ends the process."""
    corpus = current.with_suffix(".corpus")
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(data)

    def run(data: bytes) -> None:
        current.write_bytes(data)
        check(target, data)

    options = [f"-max_total_time={max(1, int(seconds))}", f"-seed={seed}", f"-max_len={_MAX_BYTES}", "-rss_limit_mb=0"]
    atheris.Setup([sys.argv[0], *options, "-verbosity=0", str(corpus)], run)
    atheris.Fuzz()


def work(arguments: argparse.Namespace) -> int:
    """Fuzz one target in this process."""
    (target,) = arguments.targets
    signal.signal(signal.SIGALRM, _on_alarm)
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    if arguments.replay:
        check(target, arguments.replay.read_bytes())
        return 0
    seeds = list_seeds(target)
    if arguments.corpus:
        seeds += [path.read_bytes() for path in sorted(arguments.corpus.rglob("*")) if path.is_file()]
    with_atheris = find_spec("atheris") is not None and not arguments.random
    run = run_with_atheris if with_atheris else run_randomly
    try:
        print(f"{target}: {run(target, arguments.seconds, arguments.seed, seeds, arguments.worker)} inputs")
    except Exception:
        return 1
    return 0


def supervise(target: str, arguments: argparse.Namespace) -> bool:
    """Fuzz one target in a process of its own; return whether nothing was found."""
    FOUND.mkdir(exist_ok=True)
    current = FOUND / f"{target}-{arguments.seed}"
    command = [sys.executable, __file__, target, f"--seconds={arguments.seconds}", f"--seed={arguments.seed}"]
    command += [f"--worker={current}", *([f"--corpus={arguments.corpus}"] if arguments.corpus else [])]
    command += ["--random"] * arguments.random
    limit_s = 2 * arguments.seconds + 120
    try:
        ended = subprocess.run(command, check=False, timeout=limit_s, stderr=subprocess.DEVNULL)
        is_clean = ended.returncode == 0
    except subprocess.TimeoutExpired:
        is_clean = False
    shutil.rmtree(current.with_suffix(".corpus"), ignore_errors=True)
    if is_clean:
        current.unlink(missing_ok=True)
    else:
        print(f"{target}: FOUND; python fuzz/run.py {target} --replay {current}")
    return is_clean


def main() -> int:
    """Fuzz the targets one after another."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0] if __doc__ else None)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all if none is named")
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--corpus", type=Path, help="a folder of more inputs to begin with")
    parser.add_argument("--random", action="store_true", help="do without atheris")
    parser.add_argument("--replay", type=Path, help="run this input alone")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - TARGETS.keys():
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if arguments.worker or arguments.replay:
        return work(arguments)
    targets = arguments.targets or list(TARGETS)
    arguments.seconds /= len(targets)
    print(f"seed {arguments.seed}", flush=True)
    clean = [supervise(target, arguments) for target in targets]
    return 0 if all(clean) else 1


if __name__ == "__main__":
    sys.exit(main())
