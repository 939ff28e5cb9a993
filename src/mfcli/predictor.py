"""Pictures -> batches -> logits -> probabilities -> top-k, with labels.

One picture after another, each failure a row of its own. Nothing here prints or knows where results go.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mfcli.artifact import FORMAT_VERSION, Artifact, ensure
from mfcli.engines import load_engine
from mfcli.engines.base import Engine, EngineName
from mfcli.errors import EngineError, FailureCode, ModelError, PictureError, UsageError
from mfcli.images import DecodedPicture, decode
from mfcli.results import PREDICT_SCHEMA, Failure, Label, PictureResult, Prediction, Progress, RunInfo
from mfcli.settings import DEFAULT_MAX_PIXELS, DEFAULT_TOP_K, Settings
from mfcli.sources import Source
from mfcli.variants import Variant, find_variant


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
    ) -> None:
        """Bind a model to the settings of a run.

        Args:
            artifact: preprocessing and labels.
            engine: holds the same model.
            labels: names to use instead of the artifact's.
            top_k: predictions a picture; None for five, or for all where there are fewer classes.
            exif: whether pictures are turned upright by their EXIF orientation.
            max_pixels: the largest picture that is decoded or resized to, in pixels.

        Raises:
            UsageError: top_k, or the number of labels, does not fit the head.
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
        self.run = self._run_info(top_k)

    def _run_info(self, top_k: int) -> RunInfo:
        shaping = {
            "schema": PREDICT_SCHEMA,
            "format_version": FORMAT_VERSION,
            "model": self.artifact.variant,
            "artifact": self.artifact.key,
            "weights_sha256": self.artifact.weights_sha256,
            "preprocess": dataclasses.asdict(self.artifact.plan),
            "labels": [dataclasses.astuple(label) for label in self.labels],
            "engine": self._engine.name,
            "precision": self._engine.precision,
            "top_k": top_k,
            "exif": self._exif,
        }
        return RunInfo(
            model=self.artifact.variant,
            weights_sha256=self.artifact.weights_sha256,
            run=hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:16],
            engine=self._engine.name,
            precision=self._engine.precision,
            top_k=top_k,
        )

    def predict(self, sources: Iterable[Source]) -> Iterator[PictureResult]:
        """Yield one result per source, in order; a picture that fails has an error instead of predictions.

        Raises:
            EngineError: the engine fails, which is not a picture's fault.
        """
        return map(self._predict_one, sources)

    def predict_file(self, path: str | Path) -> PictureResult:
        """Return the result of one picture file."""
        return self._predict_one(Source(str(path)))

    def _predict_one(self, source: Source) -> PictureResult:
        picture: DecodedPicture | None = None
        try:
            with source.open() as file:
                picture = decode(file, exif=self._exif, max_pixels=self._max_pixels)
            pixels = self.artifact.plan.apply(picture.rgb, self._max_pixels)
        except MemoryError:
            return _result(source, picture, (), Failure(FailureCode.TOO_LARGE, "does not fit into memory"))
        except PictureError as error:
            return _result(source, picture, (), Failure(error.code, error.message))
        logits = self._engine.logits(pixels[np.newaxis])[0]
        if not np.isfinite(logits).all():
            raise EngineError(
                f"{self.artifact.variant} computes what is no number for {source.input}: its artifact may be damaged",
                "mf cache verify",
            )
        return _result(source, picture, self._top_k(logits), None)

    def _top_k(self, logits: NDArray[np.float32]) -> tuple[Prediction, ...]:
        """Rank float32 logits (classes,); equal ones in head order."""
        shifted = np.exp(logits.astype(np.float64) - logits.max())
        probs = shifted / shifted.sum()
        order = np.argsort(-logits, kind="stable")[: self.run.top_k]
        return tuple(
            Prediction(rank, int(index), self.labels[index].wnid, self.labels[index].name, float(probs[index]))
            for rank, index in enumerate(order, start=1)
        )


def _result(
    source: Source, picture: DecodedPicture | None, predictions: tuple[Prediction, ...], error: Failure | None
) -> PictureResult:
    return PictureResult(
        input=source.input,
        input_b64=source.input_b64,
        member=None,
        width=picture.width if picture else None,
        height=picture.height if picture else None,
        predictions=predictions,
        error=error,
    )


def _chosen(model: str | None, settings: Settings) -> Variant:
    try:
        return find_variant(model or settings.model)
    except ModelError as error:
        where = "" if model else " (named by MF_MODEL)"
        raise ModelError(f"{error.message}{where}", error.hint) from error


def load_predictor(
    model: str | None = None,
    *,
    weights: str | Path | None = None,
    labels: tuple[Label, ...] | None = None,
    top_k: int | None = None,
    engine: EngineName | str = EngineName.AUTO,
    exif: bool = True,
    max_pixels: int = DEFAULT_MAX_PIXELS,
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
        exif: whether pictures are turned upright by their EXIF orientation.
        max_pixels: the largest picture that is decoded or resized to, in pixels.
        settings: defaults; None reads the environment.
        progress: told before something that takes long, and how far a download is.

    Raises:
        ModelError: the name is unknown, or there are no weights that fit.
        EngineError: the engine cannot load the model.
        OutputError: the artifact cannot be kept.
        UsageError: top_k, labels or engine are not possible.
    """
    settings = settings or Settings.from_environ()
    variant = _chosen(model, settings)
    if top_k is not None and top_k < 1:  # said before anything is downloaded or prepared
        raise UsageError(f"--top-k {top_k} is less than 1", "--top-k 1")
    try:
        engine = EngineName(engine)
    except ValueError as error:
        raise UsageError(f"unknown engine {engine!r}", f"one of {', '.join(EngineName)}") from error
    artifact = ensure(variant, Path(weights) if weights else None, settings, progress)
    return Predictor(
        artifact, load_engine(engine, artifact), labels=labels, top_k=top_k, exif=exif, max_pixels=max_pixels
    )
