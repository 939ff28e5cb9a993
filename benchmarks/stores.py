"""Measure reading from an object store: obstore against s3fs, and mf predict from a store against local files.

Both parts read from `object_server.py` on loopback, which shares the cores; its processor time is shown, as it may be
the limit. Clients list `--count` objects of 100 kB, and then read for `--seconds` each with 64 requests under way, in
processes of their own, whose processor time and peak memory are shown. For `mf predict`, the time of a run over two
local photos is subtracted, so that the start of the client counts. Needs `pip install '.[stores]'`, s3fs to compare,
and an otherwise idle machine:

    python benchmarks/stores.py FOLDER           # without FOLDER: synthetic JPEGs of about 500x375 pixels
"""

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count, cycle
from pathlib import Path
from typing import Any

from mfcli.synthetic import write_jpegs

REQUESTS = 64
CLIENTS = ("obstore", "s3fs")
TIMEOUT_S = 30.0


@contextmanager
def run_server(*arguments: object) -> Iterator[tuple[str, int]]:
    """Run the server; yield its address and process."""
    command = [sys.executable, str(Path(__file__).with_name("object_server.py")), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}", server.pid
        server.stdin.close()


def read_processor_s(process: int) -> float:
    """Return the processor time of a process so far."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


# ------------------------------------------------------------------------------------------------------------ clients


def read_with_obstore(seconds: float) -> tuple[int, float, int]:
    """Return how many objects are listed, the seconds that it took, and how many are read in `seconds`, as mf does."""
    from mfcli.stores import list_objects, read_object

    began = time.monotonic()
    names = [found.key for found in list_objects("s3://made/photos/", TIMEOUT_S)]
    listing_s, numbers, deadline = time.monotonic() - began, count(), time.monotonic() + seconds
    done: list[int] = []

    def work() -> None:
        read = 0
        while time.monotonic() < deadline:
            read_object(f"s3://made/{names[next(numbers) % len(names)]}", TIMEOUT_S, 2**28)
            read += 1
        done.append(read)

    threads = [threading.Thread(target=work) for _ in range(REQUESTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(names), listing_s, sum(done)


def read_with_s3fs(seconds: float) -> tuple[int, float, int]:
    """Do the same with s3fs, all in one event loop."""
    import s3fs

    async def run() -> tuple[int, float, int]:
        store: Any = s3fs.S3FileSystem(
            asynchronous=True,
            endpoint_url=os.environ["AWS_ENDPOINT_URL"],
            config_kwargs={"max_pool_connections": REQUESTS},
        )
        session = await store.set_session()
        began = time.monotonic()
        names = await store._find("made/photos/")
        listing_s, deadline, done = time.monotonic() - began, time.monotonic() + seconds, 0
        rest = cycle(names)

        async def work() -> None:
            nonlocal done
            while time.monotonic() < deadline:
                await store._cat_file(next(rest))
                done += 1

        await asyncio.gather(*(work() for _ in range(REQUESTS)))
        await session.close()
        return len(names), listing_s, done

    return asyncio.run(run())


def run_client(client: str, seconds: float) -> None:
    """Read with a client, and print the figures."""
    listed, listing_s, read = {"obstore": read_with_obstore, "s3fs": read_with_s3fs}[client](seconds)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "listed_per_s": listed / listing_s,
        "read_per_s": read / seconds,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "read": read,
        "peak_mib": usage.ru_maxrss / 1024,
    }
    print(json.dumps(figures))


def compare_clients(number: int, seconds: float) -> None:
    """Print a row for each client."""
    print(f"{'client':12} {'listed/s':>10} {'read/s':>8} {'client ms':>10} {'server ms':>10} {'peak MiB':>9}")
    with run_server("--count", number) as (url, server):
        for client in filter(find_spec, CLIENTS):
            before = read_processor_s(server)
            command = [sys.executable, __file__, "--client", client, "--seconds", str(seconds)]
            done = subprocess.run(command, env=make_environ(url), stdout=subprocess.PIPE, text=True, check=True)
            figures = json.loads(done.stdout)
            server_ms = 1000 * (read_processor_s(server) - before) / max(1, figures["read"])
            client_ms = 1000 * figures["cpu_s"] / max(1, figures["read"])
            print(
                f"{client:12} {figures['listed_per_s']:10.0f} {figures['read_per_s']:8.0f} {client_ms:10.2f} "
                f"{server_ms:10.2f} {figures['peak_mib']:9.0f}",
                flush=True,
            )


def make_environ(url: str) -> dict[str, str]:
    """Return the environment of a client of the server."""
    keys = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_REGION": "us-east-1",
    }
    return {**os.environ, **keys, "AWS_EC2_METADATA_DISABLED": "true"}


# --------------------------------------------------------------------------------------------------------- mf predict


def compare_predictions(folder: Path, rounds: int) -> None:
    """Print the rate of mf predict for local files and for the same from the store."""
    files = sorted(folder.iterdir())
    with run_server("--folder", folder) as (url, server):
        rates: dict[str, list[float]] = {"local files": [], "store": []}
        server_s = 0.0
        for _ in range(rounds):
            start_s = time_predict([str(file) for file in files[:2]], url)
            for name, inputs in (("local files", str(folder)), ("store", "s3://files/")):
                before = read_processor_s(server)
                all_s = time_predict([inputs], url)
                server_s += read_processor_s(server) - before
                rates[name].append((len(files) - 2) / (all_s - start_s))
    print(f"\n{'mf predict':12} {'images/s':>10}")
    for name, found in rates.items():
        print(f"{name:12} {statistics.median(found):10.0f}")
    ratios = [store / local for local, store in zip(rates["local files"], rates["store"], strict=True)]
    server_ms = 1000 * server_s / rounds / len(files)
    print(f"store / local files: {statistics.median(ratios):.2f}; the server takes {server_ms:.2f} ms an image")


def time_predict(inputs: list[str], url: str) -> float:
    """Return the seconds of a run of mf predict."""
    command = [sys.executable, "-m", "mfcli", "predict", *inputs, "--format", "csv", "-q"]
    began = time.monotonic()
    subprocess.run(command, env=make_environ(url), stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="photos; without it, synthetic ones")
    parser.add_argument("--count", type=int, default=100_000, help="objects that the clients list")
    parser.add_argument("--seconds", type=float, default=20.0, help="of reading, for each client")
    parser.add_argument("--photos", type=int, default=1000, help="synthetic photos")
    parser.add_argument("--rounds", type=int, default=3, help="of mf predict")
    parser.add_argument("--quick", action="store_true", help="check that it runs; the figures mean nothing")
    parser.add_argument("--client", choices=CLIENTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client is not None:
        run_client(arguments.client, arguments.seconds)
        return
    if arguments.quick:
        arguments.count, arguments.seconds, arguments.photos, arguments.rounds = 1500, 0.5, 8, 1
    compare_clients(arguments.count, arguments.seconds)
    with tempfile.TemporaryDirectory() as made:
        if arguments.folder is None:
            write_jpegs(Path(made), arguments.photos)
        compare_predictions(arguments.folder or Path(made), arguments.rounds)


if __name__ == "__main__":
    main()
