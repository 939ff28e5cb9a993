"""Make the parts of a plan on a Ray cluster (extra `ray`).

Ray starts actors, hands them shards, and repeats what is lost with a worker or a node. It may repeat too much: whoever
makes a part sees to it that it appears whole and once.
"""

import contextlib
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mfcli.errors import EngineError, UsageError, first_line, package_error
from mfcli.settings import usable_cores
from mfcli.version import __version__

LOCAL = "local"

_MAX_TASKS = 10_000
"""With more shards, a task of Ray has several."""
_MAX_THREADS = 4
"""A machine with more has several actors."""
_STORE_BYTES = 100_000_000
"""Memory of a local Ray for objects, which are only numbers and counts here."""
_PAUSE_S = 1.0
"""Time between two attempts to find a cluster."""
_WATCH_S, _LOST_S = 5.0, 40.0
"""Time between two looks at a cluster's head, and until it counts as lost; Ray waits for 60 s."""
_AGAIN = "the same command again does what is missing"
_INSTALL = "pip install 'metaformer-cli[ray]'"

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the actors are, and what each reserves.

    Attributes:
        address: `HOST:PORT` or `auto` for a cluster that this machine belongs to; `local` for one that ends with the
            work.
        threads: cores of an actor; None for four, or fewer so that actors fill the machines.
        has_gpu: whether each has a GPU.
        timeout_s: time for the cluster to come, and to have room for an actor.
    """

    address: str
    threads: int | None
    has_gpu: bool
    timeout_s: float

    def check(self) -> None:
        """Check what can be checked before there is a cluster.

        Raises:
            EngineError: Ray is not installed.
            UsageError: the address is of another kind.
        """
        host, _, port = self.address.rpartition(":")
        if self.address not in (LOCAL, "auto") and ("://" in self.address or not host or not port.isdecimal()):
            raise UsageError(
                f"ray={self.address} is not the address of a cluster that this machine belongs to",
                f"ray=HOST:PORT, ray=auto or ray={LOCAL}; from another machine: ray job submit -- mf predict ...",
            )
        _import_ray()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except Exception as error:  # a broken installation can raise anything
        raise package_error("ray", error, extra="ray") from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return ray


def distribute(
    make_worker: Callable[[int], Callable[[int], Outcome]],
    shards: Sequence[int],
    on_done: Callable[[Outcome], None],
    cluster: Cluster,
) -> None:
    """Call a worker for each shard, on as many actors as a cluster has room for.

    Args:
        make_worker: called in each actor, in this process's working folder, with the number of threads that are the
            actor's; what it returns is called with one shard after another. It is pickled.
        shards: their numbers. A shard may be done again after a failure.
        on_done: told what a worker returned, in any order.
        cluster: where.

    Raises:
        EngineError: the cluster does not come, has no room, or fails.
        UsageError: see `Cluster.check`.
        Exception: whatever a worker raises.
    """
    ray = _import_ray()
    deadline = time.monotonic() + cluster.timeout_s
    with _connect(ray, cluster, deadline):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        threads = cluster.threads or _choose_threads(nodes, has_gpu=cluster.has_gpu)
        resources = {"num_cpus": threads, "num_gpus": int(cluster.has_gpu)}
        try:
            _await_room(ray, resources, cluster, deadline)
            actors = sum(_count_actors(node, threads, has_gpu=cluster.has_gpu) for node in nodes)
            rows = _map(ray, (make_worker, threads, Path.cwd()), shards, resources, actors)
            for row in _watch(rows, ray.get_runtime_context().gcs_address):
                if isinstance(row["outcome"], Exception):
                    raise row["outcome"]
                on_done(row["outcome"])
        except ray.exceptions.RayError as error:
            raise EngineError(f"Ray has failed: {first_line(error)}", _AGAIN) from error


class _Actor:
    """What Ray Data calls with batches of shards; exceptions are outcomes, which Ray does not retry."""

    def __init__(self, make_worker: Callable[[int], Callable[[int], object]], threads: int, folder: Path) -> None:
        self._error: Exception | None = None
        try:
            _enter(folder)
            self._work = make_worker(threads)
        except Exception as error:
            self._error = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"outcome": [self._try(int(shard)) for shard in batch["shard"]]}

    def _try(self, shard: int) -> object:
        if self._error is None:
            try:
                return self._work(shard)
            except Exception as error:
                self._error = error
        return self._error


def _enter(folder: Path) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise EngineError(
            f"{folder}, where the command runs, cannot be used on {socket.gethostname()}: {error.strerror}",
            "run it in a folder that all machines share, or in /",
        ) from error


def _map(
    ray: Any, arguments: tuple[Any, ...], shards: Sequence[int], resources: dict[str, int], actors: int
) -> Iterator[dict[str, Any]]:
    """Return the rows of a data set of shards that went through a pool of actors, which grows with the cluster."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0  # of actors with one task each
    tasks = min(len(shards), _MAX_TASKS)
    numbers = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=tasks)
    pool = ray.data.ActorPoolStrategy(
        min_size=1, max_size=tasks, initial_size=max(1, min(actors, tasks)), max_tasks_in_flight_per_actor=1
    )
    done = numbers.map_batches(
        _Actor,
        batch_size=1,
        compute=pool,
        fn_constructor_args=arguments,
        **resources,
    )
    rows: Iterator[dict[str, Any]] = done.iter_rows()
    return rows


def _watch(rows: Iterator[dict[str, Any]], address: str) -> Iterator[dict[str, Any]]:
    """Yield rows, read in a thread, while the cluster's head can be reached: Ray ends a process that has lost it.

    Raises:
        EngineError: it is not.
    """
    read: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()

    def fill() -> None:
        try:
            for row in rows:
                read.put(row)
            read.put(None)
        except BaseException as error:
            read.put(error)

    threading.Thread(target=fill, daemon=True, name="mf-ray").start()
    seen = time.monotonic()
    while True:
        try:
            row = read.get(timeout=_WATCH_S)
        except queue.Empty:
            with contextlib.suppress(OSError):
                _reach(address, _WATCH_S)
                seen = time.monotonic()
            if time.monotonic() - seen > _LOST_S:
                raise EngineError(f"the Ray cluster at {address} is gone", _AGAIN) from None
            continue
        if row is None:
            return
        if isinstance(row, BaseException):
            raise row
        yield row


def _reach(address: str, timeout_s: float) -> None:
    """Open a connection.

    Raises:
        OSError: it cannot be opened.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()


def _choose_threads(nodes: Sequence[dict[str, float]], *, has_gpu: bool) -> int:
    """Return the cores of an actor: its share with a GPU, else as many as divide those of every machine."""
    if has_gpu:
        return (
            int(min((node.get("CPU", 0) // node["GPU"] for node in nodes if node.get("GPU")), default=_MAX_THREADS))
            or 1
        )
    cores = [node["CPU"] for node in nodes if node.get("CPU")]
    return max(threads for threads in range(1, _MAX_THREADS + 1) if threads == 1 or not any(n % threads for n in cores))


def _count_actors(node: dict[str, float], threads: int, *, has_gpu: bool) -> int:
    actors = int(node.get("CPU", 0) // threads)
    return min(actors, int(node.get("GPU", 0))) if has_gpu else actors


@contextlib.contextmanager
def _connect(ray: Any, cluster: Cluster, deadline: float) -> Iterator[None]:
    """Use a cluster, or one of this machine alone that ends with the body."""
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if cluster.address == LOCAL:
            _initialize(ray, LOCAL, num_cpus=usable_cores(), object_store_memory=_STORE_BYTES)
        else:
            _await_cluster(ray, cluster, deadline)
        with contextlib.suppress(ValueError):  # not in the main thread, where Ray leaves it alone as well
            signal.signal(signal.SIGTERM, on_sigterm)
        yield
    finally:
        ray.shutdown()


def _await_cluster(ray: Any, cluster: Cluster, deadline: float) -> None:
    while True:
        try:
            if ":" in cluster.address:  # Ray's own attempts take minutes
                _reach(cluster.address, max(deadline - time.monotonic(), _PAUSE_S))
            return _initialize(ray, cluster.address)
        except OSError as error:
            if time.monotonic() + _PAUSE_S > deadline:
                raise EngineError(
                    f"there is no Ray cluster at {cluster.address} after {cluster.timeout_s:g} s: {first_line(error)}",
                    f"ray status, or ray={LOCAL} for this machine alone",
                ) from error
        time.sleep(_PAUSE_S)


def _initialize(ray: Any, address: str, **limits: int) -> None:
    try:
        ray.init(address, logging_level=logging.CRITICAL, log_to_driver=False, **limits)
    except ConnectionError:
        raise
    except Exception as error:
        raise EngineError(f"Ray cannot be used at {address}: {first_line(error)}", "ray status") from error


def _await_room(ray: Any, resources: dict[str, int], cluster: Cluster, deadline: float) -> None:
    """Wait until a machine has room for an actor, and check that this version of mfcli is installed there."""
    waiting = ray.remote(_get_version).options(**resources).remote()
    try:
        theirs = ray.get(waiting, timeout=max(deadline - time.monotonic(), _PAUSE_S))
    except ray.exceptions.GetTimeoutError as error:
        wanted = f"{resources['num_cpus']} cores" + " and a GPU" * cluster.has_gpu
        raise EngineError(
            f"no machine of the Ray cluster had {wanted} free for {cluster.timeout_s:g} s",
            "ray status; ray_timeout_s=S waits longer, threads=N takes fewer cores",
        ) from error
    except ray.exceptions.RayError as error:
        raise EngineError(
            f"mfcli cannot be loaded on the machines of the Ray cluster: {first_line(error)}",
            f"there: {_INSTALL}; or ray job submit with a runtime environment that does so",
        ) from error
    if theirs != __version__:
        raise EngineError(f"the Ray cluster has mfcli {theirs}, and this is {__version__}", _INSTALL)


def _get_version() -> str:
    return __version__
