"""The predictor: pictures -> batches -> logits -> probabilities -> top-k with labels.

Pictures are decoded several at once and computed in batches; results come in input order, one per picture, failures
included. Nothing here prints or knows where results go.
"""

import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from mfcli.artifact.ensure import ensure_artifact
from mfcli.artifact.file import Artifact
from mfcli.errors import BatchTooLargeError, EngineError, ModelError, UsageError, memory_error
from mfcli.files import is_folder
from mfcli.inference.engines import load_engine
from mfcli.inference.engines.base import Engine, EngineName, EngineOptions, Precision, concatenate_outputs
from mfcli.inference.fingerprint import RunFingerprint
from mfcli.inference.loading import LoadedPicture
from mfcli.inference.pipeline import Done, PipelineConfig, run_pipeline
from mfcli.inference.postprocess import PostprocessOptions, Postprocessor, TopK
from mfcli.inference.preparation import PictureOptions, PreparedPicture, Preparer
from mfcli.inputs.codecs import DecodeMode, formats_with
from mfcli.inputs.pictures import Picture, check_picture, is_many
from mfcli.inputs.source import Source
from mfcli.models.preprocess import PreprocessOverrides, make_preprocess_plan
from mfcli.models.registry import Variant, default_variant, find_variant
from mfcli.results import Abstain, Abstention, Concept, Label, Output, PictureResult, Prediction, Progress, Query
from mfcli.runs import RunInfo
from mfcli.settings import (
    DEFAULT_CONFIDENCE,
    DEFAULT_DECODE_TIMEOUT_S,
    DEFAULT_MAX_PIXELS,
    Settings,
    usable_cores,
)

if TYPE_CHECKING:
    from mfcli.models.label_files import Labels

Name = TypeVar("Name", bound=StrEnum)


class Predictor:
    """A loaded model that turns pictures into ranked, labelled predictions.

    Attributes:
        artifact: what was loaded.
        labels: the names in use, one per class in head order.
        engine: what computes.
        targets: what the query's words mean to this model.
        doubtful_below: see `Postprocessor`.
        run_info: what the rows say of the run.
        settings: everything that shapes the answers.
    """

    def __init__(
        self,
        artifact: Artifact,
        engine: Engine,
        *,
        labels: tuple[Label, ...] | None = None,
        pictures: PictureOptions = PictureOptions(),  # noqa: B008 - frozen
        answers: PostprocessOptions = PostprocessOptions(),  # noqa: B008 - frozen
        options: EngineOptions = EngineOptions(),  # noqa: B008 - frozen
    ) -> None:
        """Bind a model to the settings of a run.

        Args:
            artifact: preprocessing and labels.
            engine: holds the same model.
            labels: names to use instead of the artifact's.
            pictures: how pictures are opened and decoded.
            answers: what results say.
            options: what the engine was loaded with.

        Raises:
            AmbiguousWordError: a word of the query has several meanings.
            UsageError: the query, top_k, or the number of labels, does not fit the head.
        """
        self.artifact = artifact
        self.engine = engine
        self._options = options
        self._max_batch_size: int | None = None
        self._preparer = Preparer(artifact.plan, pictures)
        self._postprocessor = post = Postprocessor(artifact, labels, answers)
        self.labels, self.targets, self.doubtful_below = post.labels, post.targets, post.doubtful_below
        fingerprint = RunFingerprint(
            artifact,
            self.labels,
            engine.name,
            engine.precision,
            post.top_k,
            pictures.exif,
            pictures.decode,
            pictures.column,
            pictures.keep,
            answers.confidence,
            answers.query,
            post.abstentions,
            features=Output.FEATURES in options.extra,
        )
        self.settings = fingerprint.settings
        self.run_info = RunInfo(
            model=artifact.variant,
            weights_sha256=artifact.weights_sha256,
            run=self.settings.run,
            engine=engine.name,
            precision=engine.precision,
            top_k=post.top_k,
            confidence=answers.confidence,
            query=() if answers.query is None else answers.query.words,
            keep=pictures.keep,
        )

    def __repr__(self) -> str:
        run = self.run_info
        return (
            f"<Predictor {run.model}: {len(self.labels)} classes, {run.engine}, {run.precision}, {self.engine.device}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Predictor cannot be pickled; load one in each process: load_predictor(...)")

    @overload
    def embed(  # type: ignore[overload-overlap]
        self, pictures: Picture, *, batch_size: int | None = None, workers: int | None = None
    ) -> PictureResult: ...

    @overload
    def embed(
        self, pictures: Iterable[Picture], *, batch_size: int | None = None, workers: int | None = None
    ) -> list[PictureResult]: ...

    def embed(
        self, pictures: Picture | Iterable[Picture], *, batch_size: int | None = None, workers: int | None = None
    ) -> PictureResult | list[PictureResult]:
        """Do as `predict`, with features in the results: what the head gets, float32 (dim,).

        The first call loads the model a second time, unless it was loaded with features.

        Args:
            pictures: see `predict`.
            batch_size: see `stream`.
            workers: see `stream`.

        Raises:
            TypeError: see `predict`.
            ValueError: see `predict`.
            EngineError: the engine fails, or cannot load the model again.
        """
        return self._embedder.predict(pictures, batch_size=batch_size, workers=workers)

    @cached_property
    def _embedder(self) -> "Predictor":
        """This predictor, whose results have features."""
        if Output.FEATURES in self._options.extra:
            return self
        embedder = object.__new__(Predictor)
        vars(embedder).update(vars(self))
        embedder._options = replace(self._options, extra=(*self._options.extra, Output.FEATURES))
        embedder.engine = load_engine(self.engine.name, self.artifact, embedder._options)
        return embedder

    @overload  # a str is one picture, though it is an iterable, too
    def predict(  # type: ignore[overload-overlap]
        self, pictures: Picture, *, batch_size: int | None = None, workers: int | None = None
    ) -> PictureResult: ...

    @overload
    def predict(
        self, pictures: Iterable[Picture], *, batch_size: int | None = None, workers: int | None = None
    ) -> list[PictureResult]: ...

    def predict(
        self, pictures: Picture | Iterable[Picture], *, batch_size: int | None = None, workers: int | None = None
    ) -> PictureResult | list[PictureResult]:
        """Return the result of one picture, or the results of several in their order.

        A picture that cannot be classified has an error instead of predictions.

        Args:
            pictures: one `Picture`, which is computed in the calling thread, or an iterable of them.
            batch_size: see `stream`.
            workers: see `stream`.

        Raises:
            TypeError: one of them is not a picture, or is an array of another dtype than uint8; nothing was computed.
            ValueError: an array has another shape than (H, W), (H, W, 3) or (H, W, 4); nothing was computed.
            EngineError: the engine fails.
        """
        if not is_many(pictures):
            return self._predict_one(self._preparer.make_source(pictures))  # type: ignore[arg-type]  # or raises
        pictures = list(pictures)
        for index, picture in enumerate(pictures):
            check_picture(picture, f"pictures[{index}]")
        return list(self.stream(pictures, batch_size=batch_size, workers=workers))

    def stream(
        self, pictures: Iterable[Picture], *, batch_size: int | None = None, workers: int | None = None
    ) -> Iterator[PictureResult]:
        """Yield one result per picture, in order; a picture that fails has an error instead of predictions.

        Args:
            pictures: read as the work goes on, a few batches ahead of the results, in another thread.
            batch_size: pictures per batch; None for what suits the engine and the machine.
            workers: pictures that are decoded at once; None for one per core, 0 for one after the other.

        Raises:
            TypeError: see `predict`; raised in place of the picture's result.
            ValueError: likewise.
            EngineError: the engine fails.
        """
        if not is_many(pictures):
            raise TypeError(f"stream takes an iterable of pictures, not {type(pictures).__name__}; predict takes one")
        sources = map(self._preparer.make_source, pictures)
        if workers == 0:
            return map(self._predict_one, sources)
        config = self.pipeline_config(batch_size, workers)
        self.start_decoders(config)
        prepare = partial(self.prepare, alone=False)
        weigh = attrgetter("held_bytes")
        return run_pipeline(sources, prepare, self._compute, config, self.prepare, weigh, Source.start)

    def pipeline_config(self, batch_size: int | None = None, workers: int | None = None) -> PipelineConfig:
        """Return the sizes of the pipeline that `stream` runs with these arguments."""
        return PipelineConfig(workers or usable_cores(), self.engine.streams, batch_size or self.engine.batch_size)

    def start_decoders(self, config: PipelineConfig) -> None:
        """Start the processes that decode, if any do, before a pipeline runs `prepare`."""
        self._preparer.start(config.workers)

    def _predict_one(self, source: Source) -> PictureResult:
        made = self.prepare(source, is_single=True)
        return made.result if isinstance(made, Done) else self._compute([made])[0]

    @property
    def spare_decoding_s(self) -> float:
        """Seconds of processor time, so far, for decoding and resizing JPEGs that decode=scaled would scale down."""
        return self._preparer.spare_s

    def prepare(
        self, source: Source, *, alone: bool = True, is_single: bool = False
    ) -> "PreparedPicture | Done[PictureResult]":
        """Decode and preprocess a picture, or return its result if that fails.

        Args:
            source: the picture.
            alone: see `Preparer.prepare`.
            is_single: likewise.

        Raises:
            MemoryError: likewise.
            EngineError: likewise.
        """
        prepared = self._preparer.prepare(source, alone=alone, is_single=is_single)
        return Done(self._make_result(prepared, source)) if isinstance(prepared, LoadedPicture) else prepared

    def _compute(self, pictures: Sequence[PreparedPicture]) -> list[PictureResult]:
        try:
            logits, *extra = self._run_engine(np.stack([picture.pixels for picture in pictures]))
        except MemoryError as error:
            raise memory_error(f"classify {len(pictures)} pictures at once") from error
        self._check_logits(logits, pictures)
        outputs = dict(zip(self._options.extra, extra, strict=True))
        features = outputs.get(Output.FEATURES, [None] * len(logits))
        distances = outputs[Output.DISTANCE].ravel().tolist() if Output.DISTANCE in outputs else [None] * len(logits)
        return [
            self._describe(*picture_and_outputs)
            for picture_and_outputs in zip(pictures, logits, features, distances, strict=True)
        ]

    def _run_engine(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Compute a batch; where the engine's memory is too short, in halves, and later batches as well."""
        while True:
            size = min(len(batch), self._max_batch_size or len(batch))
            try:
                return concatenate_outputs(
                    self.engine.compute(batch[start : start + size]) for start in range(0, len(batch), size)
                )
            except BatchTooLargeError:  # its traceback holds memory until here
                if size == 1:
                    raise
            self._max_batch_size = min(size // 2, self._max_batch_size or size)  # another stream may have halved it

    @property
    def memory_note(self) -> str | None:
        """What to say of batches that were halved because memory was short; None if none was."""
        if (size := self._max_batch_size) is None:
            return None
        pictures = f"{size} picture{'s' * (size > 1)}"
        return (
            f"{self.engine.device} ran out of memory, so batches were halved to {pictures}; none is missing, "
            f"but the next run is faster with batch_size={size}"
        )

    def _check_logits(self, logits: NDArray[np.float32], pictures: Sequence[PreparedPicture]) -> None:
        if logits.shape[1] != len(self.labels):
            path = self.artifact.path
            raise ModelError(
                f"{path} is damaged: it has {len(self.labels)} labels for {logits.shape[1]} classes",
                f"delete it, and the next run prepares it again: rm {shlex.quote(str(path))}",
            )
        for picture, row in zip(pictures, logits, strict=True):
            if np.isfinite(row).all():
                continue
            if self.engine.precision is Precision.FP16:  # overflows above 65504
                raise EngineError(
                    f"{self.artifact.variant} overflows fp16 on {picture.source.shown_name}",
                    f"precision={Precision.BF16}, or precision={Precision.FP32}",
                )
            raise EngineError(
                f"{self.artifact.variant} produced NaN or infinite logits for {picture.source.shown_name}: "
                "its artifact may be damaged",
                self.artifact.remedy,
            )

    def _describe(
        self,
        picture: PreparedPicture,
        logits: NDArray[np.float32],
        features: NDArray[np.float32] | None,
        distance: float | None,
    ) -> PictureResult:
        predictions, concept = self.rank(logits)
        return replace(
            self._make_result(picture, picture.source),
            predictions=predictions,
            concept=concept,
            match=self._postprocessor.search(logits),
            features=features,
            abstained=self.judge(predictions[0].prob, distance),
            logits=logits if self._postprocessor.options.logits else None,
        )

    def _make_result(self, picture: LoadedPicture | PreparedPicture, source: Source) -> PictureResult:
        """Return a result without predictions."""
        return PictureResult(
            input=source.input,
            input_b64=source.input_b64,
            member=source.member,
            width=picture.width,
            height=picture.height,
            predictions=(),
            error=picture.failure if isinstance(picture, LoadedPicture) else None,
            run=self.run_info,
            kept=source.kept,
            thumbnail=picture.thumbnail,
        )

    def rank(self, logits: NDArray[np.float32]) -> tuple[tuple[Prediction, ...], Concept | None]:
        """Rank float32 logits (classes,); see `Postprocessor.rank`."""
        return self._postprocessor.rank(logits)

    def judge(self, prob: float, distance: float | None) -> Abstention | None:
        """Return why an answer should not be trusted; see `Postprocessor.judge`."""
        return self._postprocessor.judge(prob, distance)


def load_predictor(
    model: str | None = None,
    *,
    weights: str | Path | None = None,
    labels: "Labels | None" = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    input_size: int | None = None,
    top_k: TopK = None,
    engine: EngineName | str = EngineName.AUTO,
    device: str = "auto",
    precision: Precision | str = Precision.FP32,
    threads: int | None = None,
    exif: bool = True,
    decode: DecodeMode | str = DecodeMode.EXACT,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    formats: Iterable[str] = (),
    features: bool = False,
    logits: bool = False,
    thumbnail_side: int | None = None,
    confidence: float | None = DEFAULT_CONFIDENCE,
    query: Query | None = None,
    abstain: Abstain | str | None = None,
    max_error: float | None = None,
    isolate: bool = True,
    decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S,
    column: str | None = None,
    keep: Iterable[str] = (),
    settings: Settings | None = None,
    progress: Progress = lambda _: None,
) -> Predictor:
    """Load a model by name, ready to classify pictures; its artifact is built first where there is none.

    Args:
        model: any name that `mf list-models` shows; None for that of a weights folder, else MF_MODEL or the bundled
            model.
        weights: a checkpoint file to use instead of the published one, or a folder of timm or Hugging Face, whose
            config.json also gives the preprocessing and the labels.
        labels: names to use instead of the model's: str or `Label`, one per class in head order, or the path of a file
            (see `label_files.read_labels`).
        mean: preprocessing to use instead of the model's: three numbers of red, green and blue scaled to 0..1.
        std: likewise.
        crop_pct: share of the resized shorter side that the centre crop keeps.
        interpolation: bicubic, bilinear, lanczos, hamming, box or nearest.
        input_size: height and width of the crop in pixels; another artifact is built for another size.
        top_k: predictions per picture, or `all`; None for five, or for all where there are fewer classes.
        engine: which runtime computes the logits.
        device: where: auto, cpu, cuda, cuda:N or mps.
        precision: the arithmetic: fp32, bf16 or fp16.
        threads: cores that the engine may use, None for all.
        exif: whether pictures are turned upright by their EXIF orientation.
        decode: exact for timm's pixels, bit for bit; scaled to decode large JPEGs at 1/2, 1/4 or 1/8 of their size, but
            at least twice what they are resized to.
        max_pixels: the largest picture that is decoded or resized to, in pixels.
        formats: optional picture formats to decode as well: dds, icns, ico, pcx, ppm, psd, qoi, sgi, tga.
        features: whether all results have features, as those of `Predictor.embed` have in any case.
        logits: see `PostprocessOptions`.
        thumbnail_side: see `PictureOptions`.
        confidence: see `PostprocessOptions`.
        query: see `PostprocessOptions`.
        abstain: which abstentions are shown: off, unsure, unfamiliar or both, of the bundled model and of those of
            `mf train`; None for both of the latter, and of the former if there is a `max_error`.
        max_error: see `PostprocessOptions`.
        isolate: see `PictureOptions`.
        decode_timeout_s: see `PictureOptions`.
        column: the column of Parquet files that sources were read from; like `keep`, it is part of the run.
        keep: the columns that sources keep.
        settings: defaults; None reads the environment.
        progress: called with a message before a long step, and with the progress of a download.

    Raises:
        ModelError: the name is unknown, there are no weights that fit, or a folder is not a model's.
        EngineError: the engine cannot load the model.
        OutputError: the artifact cannot be kept.
        UsageError: top_k, confidence, labels, preprocessing, engine, precision, decode or formats are not valid.
        TypeError: labels are neither names nor a path.
    """
    settings = settings or Settings.from_environ()
    overrides = PreprocessOverrides.parse(
        mean=mean, std=std, crop_pct=crop_pct, interpolation=interpolation, input_size=input_size
    )
    shown = None if abstain is None else _parse_choice(Abstain, abstain, "abstain")
    answers = PostprocessOptions(
        top_k, confidence, query, shown, max_error, logits
    )  # checked, as all of these, before anything is downloaded or prepared
    pictures = PictureOptions(
        exif=exif,
        decode=_parse_choice(DecodeMode, decode, "decode"),
        max_pixels=max_pixels,
        formats=formats_with(formats),
        offline=settings.offline,
        thumbnail_side=thumbnail_side,
        isolate=isolate,
        decode_timeout_s=decode_timeout_s,
        column=column,
        keep=tuple(keep),
    )
    engine = _parse_choice(EngineName, engine, "engine")
    extra = (Output.FEATURES,) if features else ()
    options = EngineOptions(device, _parse_choice(Precision, precision, "precision"), threads, extra)
    names = None
    if labels is not None:
        from mfcli.models.label_files import make_labels

        names = make_labels(labels)
    named = None if model is None else find_variant(model)
    if weights and is_folder(Path(weights)):
        artifact, folder_labels = _open_folder(Path(weights), named, overrides, settings, progress)
        names = names or folder_labels
    else:
        variant = overrides.apply(named or default_variant(settings))
        artifact = _ensure_preprocessing(variant, Path(weights) if weights else None, settings, progress)
    shown, _ = answers.choose_abstentions(artifact)
    if artifact.thresholds and artifact.thresholds.distance is not None and shown.covers(Abstention.UNFAMILIAR):
        options = replace(options, extra=(*options.extra, Output.DISTANCE))
    loaded = load_engine(engine, artifact, options)
    return Predictor(artifact, loaded, labels=names, pictures=pictures, answers=answers, options=options)


def _open_folder(
    path: Path, named: Variant | None, overrides: PreprocessOverrides, settings: Settings, progress: Progress
) -> tuple[Artifact, tuple[Label, ...] | None]:
    """Return the artifact of a folder of timm or Hugging Face, and the labels that it gives."""
    from mfcli.models.model_folder import read_model_folder

    folder = read_model_folder(path, named, settings)
    artifact = _ensure_preprocessing(overrides.apply(folder.variant), folder.weights_file, settings, progress)
    folder.check_classes(len(artifact.labels))
    return artifact, folder.labels


def _ensure_preprocessing(variant: Variant, weights: Path | None, settings: Settings, progress: Progress) -> Artifact:
    """Return the artifact of a variant whose preprocessing need not be its row's: its graph has only the input size."""
    if variant.folder is not None:
        return ensure_artifact(variant, weights, settings, progress)
    row = find_variant(variant.name).with_input_size(*variant.input_size[1:])
    return dataclasses.replace(ensure_artifact(row, weights, settings, progress), plan=make_preprocess_plan(variant))


def _parse_choice(kind: type[Name], value: str, what: str) -> Name:
    try:
        return kind(value)
    except ValueError as error:
        raise UsageError(f"unknown {what} {value!r}", f"one of {', '.join(kind)}") from error
