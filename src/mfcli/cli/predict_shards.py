"""`mf predict` for the shards of a plan: in this process, or in the actors of a Ray cluster."""

import math
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from mfcli.cli.destination import refuse_offline
from mfcli.cli.flags import name_flags_of_error
from mfcli.cli.requests import ModelRequest, PredictRequest
from mfcli.cli.streams import mute_libraries, note
from mfcli.errors import OutputError, UsageError
from mfcli.outputs.writer import FormatName, MappingWriter
from mfcli.results import PictureResult, Progress, Step, Tally, Transfer
from mfcli.runs import Summary

if TYPE_CHECKING:
    from mfcli.cli.progress import StderrProgress
    from mfcli.inputs.plan import Plan
    from mfcli.outputs.parts import PartFolder
    from mfcli.tasks.distribute import Cluster


def predict_shards(
    request: PredictRequest,
    folder: Path,
    *,
    shard: str | None,
    shards: str | None,
    ray: str | None,
    ray_timeout_s: float,
) -> Summary:
    """Classify the chosen shards of a plan whose parts are missing, and return the counts of all chosen ones.

    Raises:
        MfError: of any kind.
    """
    from mfcli.cli.progress import StderrProgress
    from mfcli.inputs.plan import Plan, select_shards

    refuse_offline(folder, offline=request.settings.offline)
    plan = Plan.read(folder)
    chosen = select_shards(len(plan.sha256), shard=shard, shards=shards)
    parts = _name_parts(request)
    cluster = None if ray is None else _make_cluster(ray, ray_timeout_s, request.model)
    parts.prepare()
    done = parts.list_done(len(plan.sha256))
    missing = [number for number in chosen if number not in done]
    try:
        with StderrProgress(note, request.quiet, with_bar=True) as progress:
            progress.total = plan.count(missing)
            report = _Report(progress)
            if cluster is None:
                predict_shard = _ShardPredictor(request, plan, parts, report.advance)
                for number in missing:
                    report(predict_shard(number))
            else:
                from mfcli.tasks.distribute import distribute

                # if all parts exist, one of them shows whether they are of this run
                if left := missing or chosen[:1]:
                    make_actor = partial(_make_actor, request, plan, parts)
                    with mute_libraries(), redirect_stdout(StringIO()):  # Ray writes to both
                        distribute(make_actor, left, report, cluster)
    finally:
        parts.drop_unfinished()
    if lost := set(chosen) - parts.list_done(len(plan.sha256)):
        raise OutputError(
            f"{len(lost)} parts were made, but are not in {parts.folder} on this machine",
            "name a folder that all machines share: output=FOLDER",
        )
    counts = parts.read_counts(chosen)
    failed = sum(count.failed for count in counts)
    inputs = sum(count.inputs for count in counts)
    return Summary(inputs, inputs - failed, failed, complete=True)


def _name_parts(request: PredictRequest) -> "PartFolder":
    """Return the folder of parts that a request names; nothing is created yet.

    Raises:
        OutputError: it is in an object store, and connections are not allowed.
        UsageError: it is not the name of a folder of parts, or the format is not one of parts.
    """
    from mfcli.outputs.parts import PartFolder

    out, format = request.destination.name, request.destination.layout.format
    if out is None or format not in (FormatName.JSONL, FormatName.PARQUET):
        raise UsageError("a plan has a folder of parts in jsonl or parquet", "-o OUT --format parquet")
    refuse_offline(out, offline=request.settings.offline)
    suffix = Path(out).suffix.removeprefix(".")
    if suffix != format and suffix in (*FormatName, "gz") and not Path(out).is_dir():
        hint = f"-o {out.removesuffix(f'.{suffix}')}"
        raise UsageError(f"{out} is to be a folder of parts in {format}, not a file", hint)
    return PartFolder(Path(out), str(format))


def _make_cluster(address: str, timeout_s: float, model: ModelRequest) -> "Cluster":
    from mfcli.tasks.distribute import Cluster

    running = model.running
    if running.device.startswith("cuda:"):
        raise UsageError(f"device={running.device}: Ray chooses the GPU of each actor", "device=cuda")
    cluster = Cluster(address, running.threads, running.device == "cuda", timeout_s)
    cluster.check()
    return cluster


@dataclass(frozen=True, slots=True)
class _Made:
    """The outcome of a shard.

    Attributes:
        limits: what the reader of its answers has to know about the model, if anything.
        summary: the counts of its part; None if the part existed already.
        words: the same as text.
    """

    limits: str | None
    summary: Summary | None = None
    words: str = ""


class _ShardPredictor:
    """A loaded model that makes the parts of a plan."""

    def __init__(
        self,
        request: PredictRequest,
        plan: "Plan",
        parts: "PartFolder",
        progress: Progress = lambda _: None,
    ) -> None:
        from mfcli.cli.progress import StderrProgress

        self._request, self._plan, self._parts, self._progress = request, plan, parts, progress
        with StderrProgress(note, request.quiet) as loading:
            self._predictor = request.model.load(request.settings, loading, request.inputs.selection)
        parts.claim(plan.digest, self._predictor.settings)
        self._limits = request.model.describe_limits(self._predictor)

    def __call__(self, number: int) -> _Made:
        from mfcli.inputs.plan import Changes
        from mfcli.tasks.predict import predict

        request, parts = self._request, self._parts
        if parts.is_done(number):
            return _Made(None)
        parts.check_attempts(number)
        changes, started, least = Changes(), time.monotonic(), math.inf

        def watch(result: PictureResult) -> PictureResult:
            nonlocal least
            least = min(least, math.inf if result.prob is None else result.prob)
            return name_flags_of_error(result)

        with parts.open(number, partial(request.destination.layout.open_writer, compact=True)) as writer:
            summary = predict(
                self._predictor,
                self._plan.sources(number, request.inputs.selection, changes),
                MappingWriter(writer, watch),
                batch_size=request.batch_size,
                workers=request.workers,
                max_failures=request.max_failures,
                progress=self._progress,
            )
            parts.write_counts(number, summary, time.monotonic() - started, changes.count)
        changed = f", {changes.count} changed since they were planned" if changes.count else ""
        limits = self._limits[0] if self._limits is not None and least < self._limits[1] else None
        return _Made(limits, summary, f"{summary.in_words()}{changed}; {parts.path(number)}")


def _make_actor(request: PredictRequest, plan: "Plan", parts: "PartFolder", threads: int) -> _ShardPredictor:
    """Load the model in the process of an actor, which may use this many threads."""
    model = replace(request.model, running=request.model.running._replace(threads=threads))
    return _ShardPredictor(replace(request, model=model, workers=request.workers or threads, quiet=True), plan, parts)


class _Report:
    """Reports the outcome of each shard."""

    def __init__(self, progress: "StderrProgress") -> None:
        self._progress = progress
        self._limits: str | None = None
        self._inputs = self._failed = 0

    def advance(self, event: str | Transfer | Tally | Step) -> None:
        """Show the progress of a shard that is not whole yet."""
        if isinstance(event, Tally):
            event = Tally(self._inputs + event.done, self._failed + event.failed, 0)
        self._progress(event)

    def __call__(self, made: _Made) -> None:
        if made.limits != self._limits and made.limits is not None:
            self._limits = made.limits
            self._progress(made.limits)
        if made.summary is not None:
            self._inputs += made.summary.inputs
            self._failed += made.summary.failed
            self._progress(made.words)
            self._progress(Tally(self._inputs, self._failed, 0))
