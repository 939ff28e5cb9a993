"""Measure how fast models are here: every combination of what is asked for, in turns, in one process each."""

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
from mfcli.results import Progress
from mfcli.settings import DEFAULT_BENCHMARK_ROUNDS, DEFAULT_BENCHMARK_SECONDS, Settings
from mfcli.synthetic import write_jpegs
from mfcli.tasks.benchmark_worker import Case, Loaded

_MADE_UP = 60
"""Pictures that are made up where none are given."""

_ENGINE_SHARE, _END_TO_END_SHARE, _LATENCY_SHARE = 0.4, 0.45, 0.15
"""How the seconds of a row are divided."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured; every combination of models, engines, precisions and batch sizes is a row.

    Attributes:
        models: names from the registry.
        engines: what computes the logits.
        precisions: the arithmetic.
        batch_sizes: pictures in a batch; None for what suits the engine.
        device: auto, cpu, cuda, cuda:N or mps.
        threads: cores that the engine may use, None for all.
        workers: threads that decode, None for one a core.
        weights: a checkpoint of the only model, None for the published ones.
        random_weights: whether weights are made up, so that nothing is downloaded.
        images: files and folders; none to make pictures up, photo-like JPEGs of about 500x375 pixels.
        seconds: how long a row is measured, in all rounds together.
        rounds: how many rounds these seconds are divided into.
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
    """Pictures a second over the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def over(cls, rounds: Sequence[float]) -> Self:
        """Summarise the rates of rounds."""
        return cls(statistics.median(rounds), min(rounds), max(rounds))


@dataclass(frozen=True, slots=True)
class Figures:
    """What was found out about one combination.

    Attributes:
        engine: pictures a second of the engine alone, on random numbers, all its streams busy.
        end_to_end: pictures a second from files to answers.
        ratio: the median over the rounds of end to end / engine alone in the same round; 1 means that reading,
            decoding and preparing pictures cost nothing.
        latency_p50_ms: the engine's time for one picture alone, half of the calls were faster.
        latency_p95_ms: the same, 95 % of the calls were faster.
        peak_memory_mib: the most RAM that the process held, loading and both kinds of rounds included, in MiB.
    """

    engine: Rate
    end_to_end: Rate
    ratio: float
    latency_p50_ms: float
    latency_p95_ms: float
    peak_memory_mib: float


@dataclass(frozen=True, slots=True)
class Row:
    """One combination, with either figures or an error.

    Attributes:
        case: what was asked for.
        loaded: what it turned out to be, None where nothing could be loaded.
        figures: what was measured.
        error: why there is nothing.
    """

    case: Case
    loaded: Loaded | None
    figures: Figures | None
    error: MfError | None


_ELSEWHERE = "name a folder with more room: TMPDIR=DIR"


def benchmark(plan: Plan, settings: Settings, progress: Progress = lambda _: None) -> list[Row]:
    """Measure every combination; rounds take turns, so that a busy machine slows all rows alike.

    Models are made ready first, downloaded where they are not here. A combination that cannot be run is a row with an
    error.

    Raises:
        EngineError: weights are to be prepared, and a package that it takes cannot be loaded.
        ModelError: a name is unknown, or a model cannot be had.
        OutputError: there is no room for what is made up.
        UsageError: one checkpoint is given for several models, or together with random weights; there is no such device
            or number of threads.
    """
    variants = list({variant.name: variant for variant in map(find_variant, plan.models)}.values())
    if plan.weights and (plan.random_weights or len(variants) > 1):
        what = "random weights" if plan.random_weights else "several models"
        raise UsageError(f"--weights is about one model and does not go with {what}", "mf benchmark --help")
    for engine, precision in itertools.product(plan.engines, plan.precisions):
        with contextlib.suppress(EngineError):  # what one engine cannot do is a row
            choose_engine(engine, EngineOptions(plan.device, precision, plan.threads))
    with contextlib.ExitStack() as stack:
        with _temporary_files():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mf-benchmark-")))
            if plan.random_weights:
                settings = replace(settings, named_cache_dir=folder / "cache")
            images = plan.images or (*map(str, _made_up(folder, progress)),)
            weights = {v.name: _weights(v, plan, folder, settings, progress) for v in variants}
        rows = len(variants) * len(plan.engines) * len(plan.precisions) * len(plan.batch_sizes)
        progress(f"measuring {rows} rows, about {plan.seconds:g} s each" if rows > 1 else "measuring")
        return _measured(list(_cases(plan, variants, weights, images, settings)), plan)


@contextlib.contextmanager
def _temporary_files() -> Iterator[None]:
    """Turn what the disk says of what is made up for the measurement into an OutputError that names its folder."""
    try:
        yield
    except OutputError as error:
        if "mf-benchmark-" in error.message:  # a cache in the folder
            raise OutputError(error.message, _ELSEWHERE) from error
        raise
    except OSError as error:
        if error.errno is None:  # of a library that cannot be loaded
            raise
        raise OutputError(f"cannot write temporary files: {error.strerror or error}", _ELSEWHERE) from error


def _made_up(folder: Path, progress: Progress) -> list[Path]:
    progress(f"making {_MADE_UP} pictures up")
    pictures = folder / "pictures"
    pictures.mkdir()
    return write_jpegs(pictures, _MADE_UP)


def _weights(variant: Variant, plan: Plan, folder: Path, settings: Settings, progress: Progress) -> Path | None:
    """Make a model's artifact ready; return the checkpoint that is not the row's own."""
    weights = plan.weights
    if plan.random_weights:
        from mfcli.models.checkpoint import write_random

        weights = folder / f"{variant.name}.safetensors"
        progress(f"making weights of {variant.name} up")
        write_random(weights, variant)
    ensure_artifact(variant, weights, settings, progress)
    return weights


def _cases(
    plan: Plan, variants: list[Variant], weights: dict[str, Path | None], images: tuple[str, ...], settings: Settings
) -> Iterator[Case]:
    for variant, engine, precision, size in itertools.product(
        variants, plan.engines, plan.precisions, plan.batch_sizes
    ):
        file = weights[variant.name]
        yield Case(
            model=variant.name,
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


class _Process:
    """A case at work in a process of its own; an error ends it and is kept."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.loaded: Loaded | None = None
        self.error: MfError | None = None
        self.engine: list[float] = []
        self.end_to_end: list[float] = []
        program = "from mfcli.tasks.benchmark_worker import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        fields = self._answer(asdict(case))
        if fields is not None:
            self.loaded = Loaded(**fields)

    def ask(self, what: str, seconds: float = 0.0) -> Any:
        """Return the answer; None when there is an error."""
        return None if self.error else self._answer([what, seconds])

    def _answer(self, question: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            self.error = EngineError(f"its process {_ending(self._process.wait())}", "mf doctor")
            return None
        answer = json.loads(line)
        if "error" in answer:
            message, hint, code = answer["error"]
            self.error = MfError(message, hint)
            self.error.exit_code = ExitCode(code)
        return answer.get("value")

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.communicate()


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    out_of_memory = ", perhaps because memory ran out" if code == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{out_of_memory}"


def _measured(cases: list[Case], plan: Plan) -> list[Row]:
    part = plan.seconds / plan.rounds
    with contextlib.ExitStack() as stack:
        processes = []
        for case in cases:
            process = _Process(case)
            stack.callback(process.close)
            processes.append(process)
        for _ in range(plan.rounds):
            for process in processes:
                process.engine.append(process.ask("engine", part * _ENGINE_SHARE))
                process.end_to_end.append(process.ask("end_to_end", part * _END_TO_END_SHARE))
        return [_row(process, plan.seconds * _LATENCY_SHARE) for process in processes]


def _row(process: _Process, latency_seconds: float) -> Row:
    memory_mib, latencies_ms = process.ask("memory"), process.ask("latency", latency_seconds)
    if process.error:
        return Row(process.case, process.loaded, None, process.error)
    cuts = statistics.quantiles(latencies_ms, n=20, method="inclusive")
    figures = Figures(
        engine=Rate.over(process.engine),
        end_to_end=Rate.over(process.end_to_end),
        ratio=statistics.median(e / a for e, a in zip(process.end_to_end, process.engine, strict=True)),
        latency_p50_ms=statistics.median(latencies_ms),
        latency_p95_ms=cuts[-1],
        peak_memory_mib=memory_mib,
    )
    return Row(process.case, process.loaded, figures, None)
