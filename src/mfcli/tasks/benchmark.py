"""Measure throughput, latency and memory of models: every combination of options, each in its own process."""

import contextlib
import itertools
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from mfcli.artifact.ensure import ensure_artifact
from mfcli.errors import EngineError, ExitCode, MfError, OutputError, UsageError
from mfcli.inference.engines import choose_engine
from mfcli.inference.engines.base import EngineName, EngineOptions, Precision
from mfcli.models.registry import Variant, find_variant
from mfcli.results import Progress, Step
from mfcli.settings import DEFAULT_BENCHMARK_ROUNDS, DEFAULT_BENCHMARK_SECONDS, Settings
from mfcli.synthetic import write_jpegs
from mfcli.tasks.benchmark_worker import Case, Setup

_SYNTHETIC_PICTURES = 60
"""Number of pictures that are generated if none are given."""

_ENGINE_SHARE, _END_TO_END_SHARE, _LATENCY_SHARE = 0.4, 0.45, 0.15
"""How the time of a row is divided."""

_DISK_HINT = "use a folder with more space: TMPDIR=DIR"


@dataclass(frozen=True, slots=True)
class BenchmarkPlan:
    """What to measure: every combination of models, engines, precisions and batch sizes is a row.

    Attributes:
        models: names from the registry.
        engines: the engines.
        precisions: the data types of the computation.
        batch_sizes: pictures in a batch; None for the engine's default.
        device: auto, cpu, cuda, cuda:N or mps.
        threads: cores that the engine may use, None for all.
        workers: threads that decode, None for one per core.
        weights: a checkpoint of the only model, None for the published ones.
        random_weights: whether to use random weights, so that nothing is downloaded.
        images: files and folders; empty for synthetic JPEGs of about 500x375 pixels.
        seconds: measuring time of a row, all rounds together.
        rounds: number of rounds that this time is divided into.
    """

    models: tuple[str, ...]
    engines: tuple[EngineName, ...] = (EngineName.AUTO,)
    precisions: tuple[Precision, ...] = (Precision.FP32,)
    batch_sizes: tuple[int | None, ...] = (None,)
    device: str = "auto"
    threads: int | None = None
    workers: int | None = None
    weights: Path | None = None
    random_weights: bool = False
    images: tuple[str, ...] = ()
    seconds: float = DEFAULT_BENCHMARK_SECONDS
    rounds: int = DEFAULT_BENCHMARK_ROUNDS


@dataclass(frozen=True, slots=True)
class Rate:
    """Pictures per second over the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def summarize(cls, rounds: Sequence[float]) -> Self:
        """Return median, minimum and maximum of the rounds' rates."""
        return cls(statistics.median(rounds), min(rounds), max(rounds))


@dataclass(frozen=True, slots=True)
class Figures:
    """The measurements of one combination.

    Attributes:
        engine: throughput of the engine alone, on random inputs with all streams busy.
        end_to_end: throughput from files to predictions.
        ratio: the median over the rounds of end_to_end / engine in the same round; at 1, reading, decoding and
            preprocessing cost nothing.
        latency_p50_ms: median time of the engine for a single picture.
        latency_p95_ms: 95th percentile of the same.
        peak_memory_mib: peak resident memory of the process, loading and both kinds of rounds included.
    """

    engine: Rate
    end_to_end: Rate
    ratio: float
    latency_p50_ms: float
    latency_p95_ms: float
    peak_memory_mib: float


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one combination: figures or an error.

    Attributes:
        case: the options.
        setup: what they resolved to; None if the engine could not be loaded.
        figures: the measurements; None if there is an error.
        error: why the combination could not be measured.
    """

    case: Case
    setup: Setup | None
    figures: Figures | None
    error: MfError | None


def benchmark(plan: BenchmarkPlan, settings: Settings, progress: Progress = lambda _: None) -> list[Row]:
    """Measure every combination; their rounds alternate, so that other load on the machine slows all rows alike.

    Models are prepared first, and downloaded if necessary. A combination that cannot be run is a row with an error.

    Args:
        plan: what to measure.
        settings: where models are cached, and whether they may be downloaded.
        progress: told before each step.

    Raises:
        EngineError: a package needed to prepare weights cannot be loaded.
        ModelError: a model is unknown, or its weights cannot be obtained.
        OutputError: temporary files cannot be written.
        UsageError: weights are given for several models or together with random weights; the device is unknown, or the
            number of threads out of range.
    """
    variants = list({variant.reference: variant for variant in map(find_variant, plan.models)}.values())
    if plan.weights and (plan.random_weights or len(variants) > 1):
        what = "random_weights=True" if plan.random_weights else "several models"
        raise UsageError(f"weights={plan.weights} and {what} exclude each other", "leave one of them out")
    for engine, precision in itertools.product(plan.engines, plan.precisions):
        with contextlib.suppress(EngineError):  # an unsupported combination is a row with an error
            choose_engine(engine, EngineOptions(plan.device, precision, plan.threads))
    with contextlib.ExitStack() as stack:
        with _convert_disk_errors():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mf-benchmark-")))
            if plan.random_weights:
                settings = replace(settings, named_cache_dir=folder / "cache")
            images = plan.images or (*map(str, _generate_pictures(folder, progress)),)
            weights = {v.reference: _prepare_weights(v, plan, folder, settings, progress) for v in variants}
        rows = len(variants) * len(plan.engines) * len(plan.precisions) * len(plan.batch_sizes)
        progress(f"measuring {rows} rows" if rows > 1 else "measuring")
        return _measure(list(_iter_cases(plan, variants, weights, images, settings)), plan, progress)


@contextlib.contextmanager
def _convert_disk_errors() -> Iterator[None]:
    """Turn errors of writing temporary files into an OutputError that says how to use another folder."""
    try:
        yield
    except OutputError as error:
        if "mf-benchmark-" in error.message:  # the cache in the temporary folder
            raise OutputError(error.message, _DISK_HINT) from error
        raise
    except OSError as error:
        if error.errno is None:  # a shared library that cannot be loaded
            raise
        raise OutputError(f"cannot write temporary files: {error.strerror or error}", _DISK_HINT) from error


def _generate_pictures(folder: Path, progress: Progress) -> list[Path]:
    progress(f"generating {_SYNTHETIC_PICTURES} pictures")
    pictures = folder / "pictures"
    pictures.mkdir()
    return write_jpegs(pictures, _SYNTHETIC_PICTURES)


def _prepare_weights(
    variant: Variant, plan: BenchmarkPlan, folder: Path, settings: Settings, progress: Progress
) -> Path | None:
    """Prepare a model's artifact; return the checkpoint to use instead of the published one, if any."""
    weights = plan.weights
    if plan.random_weights:
        from mfcli.models.checkpoint import write_random

        weights = folder / f"{variant.name}.safetensors"
        progress(f"generating random weights for {variant.name}")
        write_random(weights, variant)
    ensure_artifact(variant, weights, settings, progress)
    return weights


def _iter_cases(
    plan: BenchmarkPlan,
    variants: list[Variant],
    weights: dict[str, Path | None],
    images: tuple[str, ...],
    settings: Settings,
) -> Iterator[Case]:
    for variant, engine, precision, size in itertools.product(
        variants, plan.engines, plan.precisions, plan.batch_sizes
    ):
        file = weights[variant.reference]
        yield Case(
            model=variant.reference,
            weights=str(file) if file else None,
            engine=engine.value,
            precision=precision.value,
            device=plan.device,
            batch_size=size,
            threads=plan.threads,
            workers=plan.workers,
            images=images,
            cache_dir=str(settings.cache_dir) if settings.named_cache_dir else None,
        )


class _Worker:
    """The parent's side of the process that measures one case; after an error it is asked nothing more."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.setup: Setup | None = None
        self.error: MfError | None = None
        self.engine_rates: list[float] = []
        self.end_to_end_rates: list[float] = []
        program = "from mfcli.tasks.benchmark_worker import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        fields = self._request(asdict(case))
        if fields is not None:
            self.setup = Setup(**fields)

    def measure(self, quantity: str, seconds: float = 0.0) -> Any:
        """Return a measurement of `benchmark_worker.serve`; None after an error."""
        return None if self.error else self._request([quantity, seconds])

    def _request(self, message: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            self.error = EngineError(f"its process {_describe_exit(self._process.wait())}", "mf doctor")
            return None
        reply = json.loads(line)
        if "error" in reply:
            text, hint, code = reply["error"]
            self.error = MfError(text, hint)
            self.error.exit_code = ExitCode(code)
        return reply.get("value")

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.communicate()


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    out_of_memory = ", possibly because memory ran out" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{out_of_memory}"


def _measure(cases: list[Case], plan: BenchmarkPlan, progress: Progress) -> list[Row]:
    round_s = plan.seconds / plan.rounds
    total, done = len(cases) * (2 + 2 * plan.rounds), itertools.count()

    def begin(case: Case, what: str) -> None:
        progress(Step(f"{what}: {case}", next(done), total))

    with contextlib.ExitStack() as stack:
        workers = []
        for case in cases:
            begin(case, "loading")
            worker = _Worker(case)
            stack.callback(worker.close)
            workers.append(worker)
        for number in range(1, plan.rounds + 1):
            for worker in workers:
                begin(worker.case, f"engine, round {number}")
                worker.engine_rates.append(worker.measure("engine", round_s * _ENGINE_SHARE))
                begin(worker.case, f"end to end, round {number}")
                worker.end_to_end_rates.append(worker.measure("end_to_end", round_s * _END_TO_END_SHARE))
        rows = []
        for worker in workers:
            begin(worker.case, "latency")
            rows.append(_finish_row(worker, plan.seconds * _LATENCY_SHARE))
        return rows


def _finish_row(worker: _Worker, latency_seconds: float) -> Row:
    memory_mib, latencies_ms = worker.measure("memory"), worker.measure("latency", latency_seconds)
    if worker.error:
        return Row(worker.case, worker.setup, None, worker.error)
    quantiles = statistics.quantiles(latencies_ms, n=20, method="inclusive")
    figures = Figures(
        engine=Rate.summarize(worker.engine_rates),
        end_to_end=Rate.summarize(worker.end_to_end_rates),
        ratio=statistics.median(e / a for e, a in zip(worker.end_to_end_rates, worker.engine_rates, strict=True)),
        latency_p50_ms=statistics.median(latencies_ms),
        latency_p95_ms=quantiles[-1],
        peak_memory_mib=memory_mib,
    )
    return Row(worker.case, worker.setup, figures, None)
