"""The process that measures one case: throughput of the engine and end to end, latency, and peak memory.

Each case has its own process (`serve`), so that peak memory is its own and idle threads of one engine do not disturb
another. `tasks/benchmark.py` requests one measurement a line, which lets the rounds of many cases alternate.
"""

import contextlib
import itertools
import json
import os
import resource
import signal
import sys
import threading
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from mfcli.artifact.ensure import ensure_artifact
from mfcli.errors import EngineError, MfError, UsageError
from mfcli.inference.engines import load_engine
from mfcli.inference.engines.base import Engine, EngineName, EngineOptions, Precision
from mfcli.inference.predictor import Predictor
from mfcli.inputs.selection import Selection
from mfcli.inputs.sources import Source, iter_sources
from mfcli.models.registry import find_variant
from mfcli.settings import Settings

MAX_PICTURES = 1000
"""Number of pictures that are read at most; the measurement cycles through them."""

_MIN_LATENCY_CALLS, _MAX_LATENCY_CALLS = 10, 200


@dataclass(frozen=True, slots=True)
class Case:
    """The options of one row; plain values, because they are sent to the process as JSON.

    Attributes:
        model: the model's name; its artifact is already prepared.
        weights: a checkpoint to use instead of the published one.
        engine: the engine's name.
        precision: the data type of the computation.
        device: auto, cpu, cuda, cuda:N or mps.
        batch_size: pictures in a batch, None for the engine's default.
        threads: cores that the engine may use, None for all.
        workers: threads that decode, None for one per core.
        images: files and folders.
        cache_dir: where artifacts are kept.
    """

    model: str
    weights: str | None
    engine: str
    precision: str
    device: str
    batch_size: int | None
    threads: int | None
    workers: int | None
    images: tuple[str, ...]
    cache_dir: str | None

    def __str__(self) -> str:
        batch = f", batches of {self.batch_size}" if self.batch_size else ""
        return f"{self.model}, {self.engine}, {self.precision}{batch}"


@dataclass(frozen=True, slots=True)
class Setup:
    """What the options of a case resolved to once its engine was loaded.

    Attributes:
        engine: the engine, never auto.
        precision: the data type of the computation.
        device: the device it runs on.
        batch_size: pictures in a batch.
        streams: batches computed concurrently.
        workers: threads that decode.
    """

    engine: str
    precision: str
    device: str
    batch_size: int
    streams: int
    workers: int


class Bench:
    """A loaded model and the measurements on it; rates are in pictures per second.

    Attributes:
        setup: what the case resolved to.
    """

    def __init__(self, case: Case) -> None:
        """Load the model, and warm it up with two batches per stream.

        Raises:
            EngineError: the engine is not installed, or does not support the case's options.
            ModelError: the weights are missing.
            NoInputsError: no pictures were found.
        """
        settings = Settings("", Path(case.cache_dir) if case.cache_dir else None, debug=False, offline=True)
        variant = find_variant(case.model)
        artifact = ensure_artifact(variant, Path(case.weights) if case.weights else None, settings)
        options = EngineOptions(case.device, Precision(case.precision), case.threads)
        self._engine = engine = load_engine(EngineName(case.engine), artifact, options)
        self._predictor = Predictor(artifact, engine)
        self._config = self._predictor.pipeline_config(case.batch_size, case.workers)
        self._input_size = variant.input_size
        self._sources = _list_sources(case.images)
        self.setup = Setup(
            engine=engine.name,
            precision=engine.precision,
            device=engine.device,
            batch_size=self._config.batch_size,
            streams=self._config.streams,
            workers=self._config.workers,
        )
        self._rate = self._end_to_end_rate = 0.0
        self._rate = self.measure_engine(0)  # warm-up: allocations and the choice of kernels
        self._rate = self.measure_engine(0)

    def measure_engine(self, seconds: float) -> float:
        """Return the throughput of the engine alone, on random inputs with all streams busy, over about `seconds`."""
        counter = itertools.count()
        batch_size = self._config.batch_size
        batches = max(self._config.streams, round(seconds * self._rate / batch_size))
        streams = [_Stream(self._engine, self._draw_batch(batch_size)) for _ in range(self._config.streams)]
        threads = [threading.Thread(target=stream.run, args=(counter, batches)) for stream in streams]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - started
        for stream in streams:
            if stream.error is not None:
                raise stream.error
        return batches * batch_size / elapsed

    def measure_end_to_end(self, seconds: float) -> float:
        """Return the throughput from files to predictions, over about `seconds` and at least two batches per stream.

        Raises:
            UsageError: a picture cannot be read.
        """
        batch_size = self._config.batch_size
        rate = self._end_to_end_rate or self._rate  # that of the last round, once there was one
        batches = max(2 * self._config.streams, round(seconds * rate / batch_size))
        sources = itertools.islice(itertools.cycle(self._sources), batches * batch_size)
        started = time.perf_counter()
        done = 0
        for result in self._predictor.stream(sources, batch_size=batch_size, workers=self._config.workers):
            if result.error is not None:
                raise UsageError(f"{result.shown_name}: {result.error.message}", "benchmark with readable pictures")
            done += 1
        self._end_to_end_rate = done / (time.perf_counter() - started)
        return self._end_to_end_rate

    def measure_peak_memory(self) -> float:
        """Return the peak resident memory of the process so far, in MiB, without a GPU's memory."""
        with contextlib.suppress(OSError, StopIteration, ValueError):  # Linux only
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB, on macOS in bytes
        return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)

    def measure_latencies(self, seconds: float) -> list[float]:
        """Return the engine's times for single pictures in milliseconds, over about `seconds`."""
        picture = self._draw_batch(1)
        for _ in range(3):
            self._engine.logits(picture)
        latencies_ms: list[float] = []
        deadline = time.perf_counter() + seconds
        while len(latencies_ms) < _MIN_LATENCY_CALLS or (
            len(latencies_ms) < _MAX_LATENCY_CALLS and time.perf_counter() < deadline
        ):
            started = time.perf_counter()
            self._engine.logits(picture)
            latencies_ms.append(1000 * (time.perf_counter() - started))
        return latencies_ms

    def _draw_batch(self, batch_size: int) -> NDArray[np.float32]:
        return np.random.default_rng(0).standard_normal((batch_size, *self._input_size), np.float32)


class _Stream:
    """The work of one thread that keeps the engine busy."""

    def __init__(self, engine: Engine, batch: NDArray[np.float32]) -> None:
        self._engine = engine
        self._batch = batch
        self.error: Exception | None = None

    def run(self, counter: "itertools.count[int]", batches: int) -> None:
        try:
            while next(counter) < batches:
                self._engine.logits(self._batch)
        except Exception as error:
            self.error = error


def _list_sources(images: tuple[str, ...]) -> list[Source]:
    return list(itertools.islice(iter_sources(images, None, selection=Selection(offline=True)), MAX_PICTURES))


def serve() -> None:
    """Serve requests, one JSON document a line on stdin, until it ends; replies are lines on stdout.

    The first request is a `Case`, every other one a pair of quantity and seconds. A reply is `{"value": ...}`, or
    `{"error": [message, hint, exit_code]}`, after which the process ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, and kills this process
    warnings.simplefilter("ignore")
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps what libraries print out of the replies
    try:
        fields = json.loads(sys.stdin.readline())
        bench = Bench(Case(**{**fields, "images": tuple(fields["images"])}))
        _reply(replies, value=asdict(bench.setup))
        for line in sys.stdin:
            quantity, seconds = json.loads(line)
            _reply(replies, value=_MEASUREMENTS[quantity](bench, seconds))
    except MfError as error:
        _reply(replies, error=[error.message, error.hint, error.exit_code])
    except Exception as error:  # a bug or a library's error, shown in the row
        _reply(replies, error=[f"{type(error).__name__}: {error}", None, EngineError.exit_code])
    os._exit(0)  # some runtimes are slow to shut down


_MEASUREMENTS = {
    "engine": Bench.measure_engine,
    "end_to_end": Bench.measure_end_to_end,
    "memory": lambda bench, _: bench.measure_peak_memory(),
    "latency": Bench.measure_latencies,
}


def _reply(replies: TextIO, **message: Any) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()
