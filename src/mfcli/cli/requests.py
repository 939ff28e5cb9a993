"""What commands that classify were asked for, checked as far as it can be without reading a file."""

import contextlib
import math
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mfcli.cli.destination import Destination
from mfcli.cli.option_groups import DecodingOptions, InputOptions, ModelOptions, OverrideOptions, RunningOptions
from mfcli.cli.options import parse_numbers
from mfcli.cli.streams import standard_input
from mfcli.errors import ExitCode, UsageError
from mfcli.hub.bundled import is_bundled
from mfcli.inputs.arguments import Argument, ArgumentKind, classify, classify_list
from mfcli.inputs.codecs import DecodeMode, formats_with, suffixes_of
from mfcli.inputs.left_out import LeftOut
from mfcli.inputs.selection import DEFAULT_TIMEOUT_S, Selection
from mfcli.models.registry import find_variant
from mfcli.results import Abstain, PictureResult, Query
from mfcli.runs import Summary
from mfcli.settings import DEFAULT_CONFIDENCE, DEFAULT_MAX_ERROR, Settings

if TYPE_CHECKING:
    from mfcli.inference.predictor import Predictor
    from mfcli.inputs.source import Source
    from mfcli.results import Progress
    from mfcli.tasks.predict import MaxFailures

MAX_MISSING = 10
"""Missing files that are named, and for which a near name is looked for."""
_MAX_SEARCHED = 10_000
"""Names in a folder among which a misspelt one is looked for."""
_MOST_ERRORS = 0.5
"""The largest share of wrong answers that is worth a promise."""


@dataclass(frozen=True, slots=True)
class InputRequest:
    """What to classify."""

    names: tuple[str, ...]
    files_from: str | None
    nul: bool
    selection: Selection

    @classmethod
    def parse(
        cls, options: InputOptions, decoding: DecodingOptions, settings: Settings, keep: list[str] | None = None
    ) -> "InputRequest":
        """Read the options.

        Args:
            options: which pictures.
            decoding: the formats, which have suffixes, and the time limit of URLs.
            settings: say whether there is a network.
            keep: --keep.

        Raises:
            UsageError: there are several lists, the timeout is not finite, or a format is unknown.
        """
        timeout_s = decoding.timeout
        if not math.isfinite(timeout_s):
            raise UsageError(f"--timeout {timeout_s} is not a number of seconds", f"--timeout {DEFAULT_TIMEOUT_S:g}")
        lists = options.lists or []
        if len(lists) > 1:
            raise UsageError("--files-from is given twice", f"cat {shlex.join(lists)} | mf predict --files-from -")
        selection = Selection(
            recursive=not options.no_recursive,
            include=tuple(options.include or ()),
            exclude=tuple(options.exclude or ()),
            timeout_s=timeout_s,
            offline=settings.offline,
            suffixes=suffixes_of(formats_with(decoding.split_formats())),
            column=options.column,
            keep=tuple(dict.fromkeys(keep or ())),
        )
        return cls(tuple(options.inputs or ()), lists[0] if lists else None, options.null, selection)

    @property
    def all_names(self) -> list[str]:
        """The inputs and the list of inputs, as given."""
        return [*self.names, *([] if self.files_from is None else [self.files_from])]

    @property
    def arguments(self) -> list[Argument]:
        """The inputs and the list of inputs, told apart."""
        listed = [] if self.files_from is None else [classify_list(self.files_from)]
        return [*map(classify, self.names), *listed]

    def list_missing(self) -> list[str]:
        """Return the arguments that name a file that does not exist."""
        return [
            argument.name
            for argument in map(classify, self.names)
            if argument.kind is ArgumentKind.FILE and not os.path.lexists(argument.name)
        ]

    def open(self, left_out: LeftOut | None = None, *, names_only: bool = False) -> "Iterator[Source]":
        """Return the pictures, or only their names."""
        from mfcli.inputs.sources import iter_sources

        return iter_sources(
            self.names,
            standard_input(),
            files_from=self.files_from,
            nul=self.nul,
            selection=replace(self.selection, left_out=left_out, names_only=names_only),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """What to load; see `load_predictor`."""

    model: ModelOptions
    running: RunningOptions
    decoding: DecodingOptions
    overrides: OverrideOptions = field(default_factory=OverrideOptions)
    decode: DecodeMode = DecodeMode.EXACT
    top_k: int | Literal["all"] | None = None
    confidence: float | None = DEFAULT_CONFIDENCE
    abstain: Abstain | None = Abstain.OFF
    max_error: float | None = None
    query: Query | None = None
    features: bool = False
    logits: bool = False

    def load(
        self,
        settings: Settings,
        progress: "Progress",
        selection: Selection = Selection(),  # noqa: B008 - frozen
        *,
        thumbnail_side: int | None = None,
    ) -> "Predictor":
        """Load the model.

        Args:
            settings: locate the cache.
            progress: told notes and downloads.
            selection: that of the pictures, whose columns are part of the run.
            thumbnail_side: see `load_predictor`.

        Raises:
            MfError: of any kind.
        """
        from mfcli.inference.model_loading import load_predictor

        running, decoding, overrides = self.running, self.decoding, self.overrides
        return load_predictor(
            self.model.model,
            weights=self.model.weights,
            labels=overrides.labels,
            mean=parse_numbers(overrides.mean, "--mean"),
            std=parse_numbers(overrides.std, "--std"),
            crop_pct=overrides.crop_pct,
            interpolation=overrides.interpolation,
            input_size=overrides.input_size,
            top_k=self.top_k,
            confidence=self.confidence,
            abstain=self.abstain,
            max_error=self.max_error,
            engine=running.engine,
            device=running.device,
            precision=running.precision,
            threads=running.threads,
            exif=not decoding.no_exif,
            decode=self.decode,
            max_pixels=decoding.max_pixels,
            decode_timeout_s=decoding.decode_timeout,
            formats=decoding.split_formats(),
            column=selection.column,
            keep=selection.keep,
            features=self.features,
            logits=self.logits,
            query=self.query,
            thumbnail_side=thumbnail_side,
            settings=settings,
            progress=progress,
        )

    def describe_limits(self, predictor: "Predictor") -> tuple[str, float] | None:
        """Return what the reader of answers below a probability has to know about the model, if anything."""
        classes = len(predictor.labels)
        if words := self.describe_promise(predictor):
            return words, math.inf
        if is_bundled(predictor.artifact.path):
            words = (
                f"answered by the small bundled model, which knows {classes} classes and can name nothing else; "
                "one that knows 1000: --model caformer_s18"
            )
            return words, predictor.doubtful_below
        if self.model.weights is None:
            return None
        if (
            classes != find_variant(predictor.artifact.variant).num_classes
            and predictor.labels == predictor.artifact.labels
        ):
            words = f"the head of {self.model.weights} has {classes} classes without names; name them: --labels FILE"
            return words, math.inf
        return None

    def describe_promise(self, predictor: "Predictor") -> str:
        """Say that the model knows too little of its errors to promise how many there are; else an empty text."""
        thresholds, max_error = predictor.artifact.thresholds, self.max_error or DEFAULT_MAX_ERROR
        if thresholds is None or self.abstain in (Abstain.OFF, Abstain.UNFAMILIAR):
            return ""
        least = thresholds.least_error
        if least <= max_error:
            return ""
        advice = f"what it can promise: max_error={math.ceil(100 * least)}%"
        if least > _MOST_ERRORS:
            advice = "it takes more pictures to learn from"
        marked = "none" if self.max_error is None and self.abstain is None else "every one"
        return (
            f"too little was learned to promise that at most {100 * max_error:.4g}% of the answers are wrong, so "
            f"{marked} is marked as unsure; {advice}"
        )


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """Everything that one `mf predict` or `mf find` was asked for, checked as far as it can be without reading a file.

    Each result passes through `observe` before it is written.
    """

    inputs: InputRequest
    model: ModelRequest
    destination: Destination
    batch_size: int | None
    workers: int | None
    max_failures: "MaxFailures"
    settings: Settings
    quiet: bool
    show: bool = False
    observe: Callable[[PictureResult], PictureResult] | None = None


def find_near(name: str) -> str | None:
    """Return a path that a missing one may be a misspelling of, up to its first missing part; None without any."""
    from mfcli.models.meanings import find_similar, make_key

    path = Path(name)
    while not path.parent.is_dir() and path != path.parent:
        path = path.parent
    with contextlib.suppress(OSError, ValueError), os.scandir(path.parent) as entries:
        names = {make_key(entry.name): entry.name for entry in islice(entries, _MAX_SEARCHED)}
        return next((str(path.with_name(near)) for near in find_similar(path.name, names, 1)), None)
    return None


def import_numpy() -> None:
    """Import NumPy without its threads for linear algebra, a fifth of the processor time of a first answer."""
    name = "OPENBLAS_NUM_THREADS"
    if name in os.environ:
        return
    os.environ[name] = "1"
    import numpy  # noqa: F401

    del os.environ[name]  # PyTorch obeys it, too, where it uses OpenBLAS


def exit_code(summary: Summary, *, allow_failures: bool) -> ExitCode:
    """Return what a run's counts mean."""
    if allow_failures or not summary.failed:
        return ExitCode.OK
    return ExitCode.SOME_FAILED if summary.ok else ExitCode.ALL_FAILED
