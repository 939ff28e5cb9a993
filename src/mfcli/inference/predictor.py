"""Pictures -> batches -> logits -> probabilities -> top-k, with labels.

Pictures are decoded in threads and computed in batches; a result comes for each in order, each failure a row of its
own. Nothing here prints or knows where results go.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mfcli.artifact.ensure import ensure_artifact
from mfcli.artifact.file import FORMAT_VERSION, Artifact
from mfcli.errors import EngineError, FailureCode, PictureError, UsageError
from mfcli.inference.engines import load_engine
from mfcli.inference.engines.base import Engine, EngineName, EngineOptions, Precision
from mfcli.inference.pipeline import Done, PipelineConfig, run_pipeline
from mfcli.inputs.codecs import formats_with
from mfcli.inputs.decode import DecodedPicture, decode
from mfcli.inputs.sources import Source
from mfcli.models.registry import default_variant, find_variant
from mfcli.results import PREDICT_SCHEMA, Failure, Label, PictureResult, Prediction, Progress, RunInfo
from mfcli.settings import DEFAULT_MAX_PIXELS, DEFAULT_TOP_K, Settings, usable_cores

Name = TypeVar("Name", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture that waits for its logits."""

    source: Source
    width: int
    height: int
    pixels: NDArray[np.float32]


_ORDINARY_BYTES = 2**26
"""What decoding and resizing a photo of some ten million pixels takes."""


@dataclass(frozen=True, slots=True)
class RunFingerprint:
    """What shapes the answers beside the artifact."""

    labels: tuple[Label, ...]
    engine: EngineName
    precision: Precision
    top_k: int
    exif: bool

    def run_of(self, artifact: Artifact) -> str:
        """Return 16 hex digits over everything that shapes an answer."""
        shaping = {
            "schema": PREDICT_SCHEMA,
            "format_version": FORMAT_VERSION,
            "model": artifact.variant,
            "artifact": artifact.key,
            "weights_sha256": artifact.weights_sha256,
            "preprocess": dataclasses.asdict(artifact.plan),
            "labels": [dataclasses.astuple(label) for label in self.labels],
            "engine": self.engine,
            "precision": self.precision,
            "top_k": self.top_k,
            "exif": self.exif,
        }
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, other: "RunFingerprint") -> Iterator[str]:
        """Name what differs, as options."""
        for option, mine, theirs in (
            ("--engine", self.engine, other.engine),
            ("--precision", self.precision, other.precision),
            ("--top-k", self.top_k, other.top_k),
        ):
            if mine != theirs:
                yield f"{option} {mine} instead of {theirs}"
        if self.exif != other.exif:
            yield "without --no-exif" if self.exif else "with --no-exif"
        if self.labels != other.labels:
            yield "without --labels"


class Predictor:
    """A loaded model that turns pictures into ranked, labelled predictions.

    Attributes:
        artifact: what was loaded.
        labels: the names in use, one per class in head order.
        run: what shapes the answers.
    """

    def __init__(
        self,
        artifact: Artifact,
        engine: Engine,
        *,
        labels: tuple[Label, ...] | None = None,
        top_k: int | None = None,
        exif: bool = True,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        formats: Iterable[str] = (),
    ) -> None:
        """Bind a model to the settings of a run.

        Args:
            artifact: preprocessing and labels.
            engine: holds the same model.
            labels: names to use instead of the artifact's.
            top_k: predictions a picture; None for five, or for all where there are fewer classes.
            exif: whether pictures are turned upright by their EXIF orientation.
            max_pixels: the largest picture that is decoded or resized to, in pixels.
            formats: optional picture formats that are decoded, too (`codecs.OPTIONAL_FORMATS`).

        Raises:
            UsageError: top_k, or the number of labels, does not fit the head; a format is unknown.
        """
        classes = len(artifact.labels)
        if top_k is None:
            top_k = min(DEFAULT_TOP_K, classes)
        if not 1 <= top_k <= classes:
            raise UsageError(
                f"--top-k {top_k} is not between 1 and the {classes} classes of {artifact.variant}",
                f"--top-k {min(max(top_k, 1), classes)}",
            )
        if labels is not None and len(labels) != classes:
            raise UsageError(
                f"{len(labels)} labels for the {classes} classes of {artifact.variant}",
                f"the labels file must hold {classes} names, in the head's order",
            )
        self.artifact = artifact
        self.labels = labels or artifact.labels
        self._engine = engine
        self._exif = exif
        self._max_pixels = max_pixels
        self._formats = formats_with(formats)
        shaping = RunFingerprint(self.labels, engine.name, engine.precision, top_k, exif)
        self.run = RunInfo(
            model=artifact.variant,
            weights_sha256=artifact.weights_sha256,
            run=shaping.run_of(artifact),
            engine=engine.name,
            precision=engine.precision,
            top_k=top_k,
        )
        self._shaping = shaping

    def difference(self, row: dict[str, Any]) -> str:
        """Say in a few words how the run that wrote a JSON row differs from this one.

        A row holds no settings but the digest of all of them, so those that give this digest are looked for.
        """
        ours = self._shaping
        if row.get("model") != self.artifact.variant:
            return f"model {row.get('model')} instead of {self.artifact.variant}"
        if row.get("weights_sha256") != self.artifact.weights_sha256:
            return f"other weights of {self.artifact.variant}, SHA-256 {row.get('weights_sha256')}"
        top_ks = {ours.top_k, len(row.get("predictions") or ()) or DEFAULT_TOP_K}
        for labels, engine, precision, top_k, exif in itertools.product(
            (ours.labels, self.artifact.labels), EngineName, Precision, top_ks, (True, False)
        ):
            theirs = RunFingerprint(labels, engine, precision, top_k, exif)
            if theirs.run_of(self.artifact) == row.get("run"):
                return ", ".join(theirs.differences(ours))
        return "other labels, another version of mfcli, or several settings"

    def predict(
        self, sources: Iterable[Source], *, batch_size: int | None = None, workers: int | None = None
    ) -> Iterator[PictureResult]:
        """Yield one result per source, in order; a picture that fails has an error instead of predictions.

        Args:
            sources: read as the work goes on, a few batches ahead of the results.
            batch_size: pictures that are computed as one; None for what suits the engine and the machine.
            workers: threads that decode; None for one per core, 0 for no thread at all, which suits a single picture.

        Raises:
            EngineError: the engine fails, which is not a picture's fault.
        """
        if workers == 0:
            return map(self.predict_one, sources)
        return run_pipeline(sources, self._prepared, self._computed, self.shape(batch_size, workers))

    def shape(self, batch_size: int | None = None, workers: int | None = None) -> PipelineConfig:
        """Return how wide the pipeline of `predict` is with these wishes."""
        return PipelineConfig(workers or usable_cores(), self._engine.streams, batch_size or self._engine.batch_size)

    def predict_file(self, path: str | Path) -> PictureResult:
        """Return the result of one picture file."""
        return self.predict_one(Source(str(path)))

    def predict_one(self, source: Source) -> PictureResult:
        """Return the result of one source, without a thread."""
        made = self._prepared(source)
        return made.result if isinstance(made, Done) else self._computed([made])[0]

    def _prepared(self, source: Source) -> "_Picture | Done[PictureResult]":
        picture: DecodedPicture | None = None
        try:
            with source.open() as file:
                picture = decode(file, exif=self._exif, max_pixels=self._max_pixels, formats=self._formats)
            pixels = self.artifact.plan.apply(picture.rgb, self._max_pixels)
        except MemoryError as error:
            if not _has_room():
                raise EngineError("there is too little memory", "--batch-size 1 --workers 1 --threads 1") from error
            return Done(_result(source, picture, (), Failure(FailureCode.TOO_LARGE, "does not fit into memory")))
        except PictureError as error:
            return Done(_result(source, picture, (), Failure(error.code, error.message)))
        return _Picture(source, picture.width, picture.height, pixels)

    def _computed(self, pictures: Sequence[_Picture]) -> list[PictureResult]:
        logits = self._engine.logits(np.stack([picture.pixels for picture in pictures]))
        for picture, row in zip(pictures, logits, strict=True):
            if not np.isfinite(row).all():
                if self._engine.precision is Precision.FP16:  # whose largest number is 65504
                    raise EngineError(
                        f"the numbers of {self.artifact.variant} are too large for fp16 on {picture.source.input}",
                        f"--precision {Precision.BF16}, or {Precision.FP32}",
                    )
                raise EngineError(
                    f"{self.artifact.variant} computes what is no number for {picture.source.input}: "
                    "its artifact may be damaged",
                    self.artifact.remedy,
                )
        return [_result(p.source, p, self._top_k(row), None) for p, row in zip(pictures, logits, strict=True)]

    def _top_k(self, logits: NDArray[np.float32]) -> tuple[Prediction, ...]:
        """Rank float32 logits (classes,); equal ones in head order."""
        shifted = np.exp(logits.astype(np.float64) - logits.max())
        probs = shifted / shifted.sum()
        order = np.argsort(-logits, kind="stable")[: self.run.top_k]
        return tuple(
            Prediction(rank, int(index), self.labels[index].wnid, self.labels[index].name, float(probs[index]))
            for rank, index in enumerate(order, start=1)
        )


def _has_room() -> bool:
    """Whether an ordinary picture would find memory: then one that does not is too large, else it is not to blame."""
    try:
        return bool(bytearray(_ORDINARY_BYTES))
    except MemoryError:
        return False


def _result(
    source: Source,
    picture: DecodedPicture | _Picture | None,
    predictions: tuple[Prediction, ...],
    error: Failure | None,
) -> PictureResult:
    return PictureResult(
        input=source.input,
        input_b64=source.input_b64,
        member=source.member,
        width=picture.width if picture else None,
        height=picture.height if picture else None,
        predictions=predictions,
        error=error,
    )


def load_predictor(
    model: str | None = None,
    *,
    weights: str | Path | None = None,
    labels: tuple[Label, ...] | None = None,
    top_k: int | None = None,
    engine: EngineName | str = EngineName.AUTO,
    device: str = "auto",
    precision: Precision | str = Precision.FP32,
    threads: int | None = None,
    exif: bool = True,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    formats: Iterable[str] = (),
    settings: Settings | None = None,
    progress: Progress = lambda _: None,
) -> Predictor:
    """Load a model by name, ready to classify pictures; its artifact is built first where there is none.

    Args:
        model: any name that `mf list-models` shows; None for MF_MODEL or the bundled model.
        weights: a checkpoint file to use instead of the published one.
        labels: names to use instead of the model's, one per class in head order.
        top_k: predictions a picture; None for five, or for all where there are fewer classes.
        engine: which runtime computes the logits.
        device: where: auto, cpu, cuda, cuda:N or mps.
        precision: the arithmetic: fp32, bf16 or fp16.
        threads: cores that the engine may use, None for all.
        exif: whether pictures are turned upright by their EXIF orientation.
        max_pixels: the largest picture that is decoded or resized to, in pixels.
        formats: optional picture formats that are decoded, too: dds, icns, ico, pcx, ppm, psd, qoi, sgi, tga.
        settings: defaults; None reads the environment.
        progress: told before something that takes long, and how far a download is.

    Raises:
        ModelError: the name is unknown, or there are no weights that fit.
        EngineError: the engine cannot load the model.
        OutputError: the artifact cannot be kept.
        UsageError: top_k, labels, engine, precision or formats are not possible.
    """
    settings = settings or Settings.from_environ()
    variant = default_variant(settings) if model is None else find_variant(model)
    if top_k is not None and top_k < 1:  # said before anything is downloaded or prepared
        raise UsageError(f"--top-k {top_k} is less than 1", "--top-k 1")
    engine = _one_of(EngineName, engine, "engine")
    options = EngineOptions(device, _one_of(Precision, precision, "precision"), threads)
    artifact = ensure_artifact(variant, Path(weights) if weights else None, settings, progress)
    loaded = load_engine(engine, artifact, options)
    return Predictor(artifact, loaded, labels=labels, top_k=top_k, exif=exif, max_pixels=max_pixels, formats=formats)


def _one_of(kind: type[Name], value: str, what: str) -> Name:
    try:
        return kind(value)
    except ValueError as error:
        raise UsageError(f"unknown {what} {value!r}", f"one of {', '.join(kind)}") from error
