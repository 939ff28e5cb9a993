"""How fast one loaded model is: the engine alone, whole runs from files on, one picture alone, and the peak memory.

Each case is measured in a process of its own (`serve`), so that its peak memory is its own and no engine's idle threads
disturb another's. The process is told what to measure and for how long, a line at a time, by `tasks/benchmark.py`; so
the rounds of many cases can take turns.
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
"""Pictures of a folder that are used, over and over."""

_LATENCY_CALLS = (10, 200)


@dataclass(frozen=True, slots=True)
class Case:
    """What one process measures; plain values, because it crosses to the process as JSON.

    Attributes:
        model: the row's name; its artifact is ready.
        weights: a checkpoint to use instead of the row's own.
        engine: the engine's name.
        precision: the arithmetic.
        device: auto, cpu, cuda, cuda:N or mps.
        batch_size: pictures in a batch, None for what suits the engine.
        threads: cores that the engine may use, None for all.
        workers: threads that decode, None for one a core.
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


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a case turned out to be once its engine was loaded.

    Attributes:
        engine: the engine that AUTO became.
        precision: the engine's arithmetic.
        device: where it runs.
        batch_size: pictures in a batch.
        streams: batches computed at the same time.
        workers: threads that decode.
    """

    engine: str
    precision: str
    device: str
    batch_size: int
    streams: int
    workers: int


class Bench:
    """A loaded model and how fast it is; every rate is in pictures a second.

    Attributes:
        loaded: what it is.
    """

    def __init__(self, case: Case) -> None:
        """Load the model, and warm it up with two batches a stream.

        Raises:
            EngineError: the engine is not installed, or cannot do what the case asks for.
            ModelError: there are no weights.
            NoInputsError: there are no pictures.
        """
        settings = Settings("", Path(case.cache_dir) if case.cache_dir else None, debug=False, offline=True)
        variant = find_variant(case.model)
        artifact = ensure_artifact(variant, Path(case.weights) if case.weights else None, settings)
        options = EngineOptions(case.device, Precision(case.precision), case.threads)
        self._engine = engine = load_engine(EngineName(case.engine), artifact, options)
        self._predictor = Predictor(artifact, engine)
        self._shape = self._predictor.pipeline_config(case.batch_size, case.workers)
        self._size = variant.input_size
        self._pictures = _pictures(case.images)
        self.loaded = Loaded(
            engine=engine.name,
            precision=engine.precision,
            device=engine.device,
            batch_size=self._shape.batch_size,
            streams=self._shape.streams,
            workers=self._shape.workers,
        )
        self._rate = 0.0
        self._rate = self.engine_images_per_s(0)  # allocations, kernels chosen on first use
        self._rate = self.engine_images_per_s(0)

    def engine_images_per_s(self, seconds: float) -> float:
        """Return the rate of the engine alone, on random numbers, all streams busy, for about so many seconds."""
        batches = itertools.count()
        wanted = max(self._shape.streams, round(seconds * self._rate / self._shape.batch_size))
        streams = [_Stream(self._engine, self._noise(self._shape.batch_size)) for _ in range(self._shape.streams)]
        threads = [threading.Thread(target=stream.run, args=(batches, wanted)) for stream in streams]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - started
        for stream in streams:
            if stream.error is not None:
                raise stream.error
        return wanted * self._shape.batch_size / elapsed

    def images_per_s(self, seconds: float) -> float:
        """Return the rate from files to answers, for about so many seconds and at least two batches a stream.

        Raises:
            UsageError: a picture cannot be read.
        """
        least = 2 * self._shape.streams
        batches = max(least, round(seconds * self._rate / self._shape.batch_size))
        sources = itertools.islice(itertools.cycle(self._pictures), batches * self._shape.batch_size)
        started = time.perf_counter()
        done = 0
        for result in self._predictor.predict(sources, batch_size=self._shape.batch_size, workers=self._shape.workers):
            if result.error is not None:
                raise UsageError(f"{result.input}: {result.error.message}", "measure with pictures that can be read")
            done += 1
        return done / (time.perf_counter() - started)

    def peak_memory_mib(self) -> float:
        """Return the most memory that the process has held so far, in MiB of RAM; memory of a GPU does not count."""
        with contextlib.suppress(OSError, StopIteration, ValueError):  # Linux
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
        return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)

    def latencies_ms(self, seconds: float) -> list[float]:
        """Return the milliseconds of single pictures, one after another."""
        picture = self._noise(1)
        for _ in range(3):
            self._engine.logits(picture)
        found: list[float] = []
        least, most = _LATENCY_CALLS
        deadline = time.perf_counter() + seconds
        while len(found) < least or (len(found) < most and time.perf_counter() < deadline):
            started = time.perf_counter()
            self._engine.logits(picture)
            found.append(1000 * (time.perf_counter() - started))
        return found

    def _noise(self, batch_size: int) -> NDArray[np.float32]:
        return np.random.default_rng(0).standard_normal((batch_size, *self._size), np.float32)


class _Stream:
    """One thread that keeps the engine busy."""

    def __init__(self, engine: Engine, batch: NDArray[np.float32]) -> None:
        self._engine = engine
        self._batch = batch
        self.error: Exception | None = None

    def run(self, batches: "itertools.count[int]", wanted: int) -> None:
        try:
            while next(batches) < wanted:
                self._engine.logits(self._batch)
        except Exception as error:
            self.error = error


def _pictures(images: tuple[str, ...]) -> list[Source]:
    return list(itertools.islice(iter_sources(images, None, selection=Selection(offline=True)), MAX_PICTURES))


def serve() -> None:
    """Answer the questions that come as lines on stdin, until it ends: the first is a case, the others what to measure.

    A question is a JSON pair of what to measure and its seconds. An answer is `{"value": ...}`; or `{"error": [...]}`
    with message, hint and exit code, and then the process ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to deal with: it closes stdin
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        fields = json.loads(sys.stdin.readline())
        bench = Bench(Case(**{**fields, "images": tuple(fields["images"])}))
        _tell(answers, value=asdict(bench.loaded))
        for line in sys.stdin:
            method, seconds = json.loads(line)
            _tell(answers, value=_ANSWERS[method](bench, seconds))
    except MfError as error:
        _tell(answers, error=[error.message, error.hint, error.exit_code])
    except Exception as error:  # a bug, or a library's own: it shows in the row
        _tell(answers, error=[f"{type(error).__name__}: {error}", None, EngineError.exit_code])
    answers.flush()
    os._exit(0)  # some runtimes take long to be taken down


_ANSWERS = {
    "engine": Bench.engine_images_per_s,
    "end_to_end": Bench.images_per_s,
    "memory": lambda bench, _: bench.peak_memory_mib(),
    "latency": Bench.latencies_ms,
}


def _tell(answers: TextIO, **answer: Any) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
