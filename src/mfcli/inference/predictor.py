"""The predictor: pictures -> batches -> logits -> probabilities -> top-k with labels.

Pictures are decoded several at once and computed in batches; results come in input order, one per picture, failures
included. Nothing here prints or knows where results go.
"""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from operator import attrgetter
from typing import NoReturn, overload

import numpy as np
from numpy.typing import NDArray

from mfcli.artifact.file import Artifact
from mfcli.errors import BatchTooLargeError, EngineError, ModelError, memory_error
from mfcli.inference.engines import load_engine
from mfcli.inference.engines.base import Engine, EngineOptions, Precision, concatenate_outputs
from mfcli.inference.fingerprint import RunFingerprint
from mfcli.inference.loading import LoadedPicture
from mfcli.inference.pipeline import Done, PipelineConfig, run_pipeline
from mfcli.inference.postprocess import PostprocessOptions, Postprocessor
from mfcli.inference.preparation import PictureOptions, PreparedPicture, Preparer
from mfcli.inputs.pictures import Picture, check_picture, is_many
from mfcli.inputs.source import Source
from mfcli.results import Abstention, Concept, Label, Output, PictureResult, Prediction
from mfcli.runs import RunInfo
from mfcli.settings import usable_cores


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
        self.settings = RunFingerprint(
            artifact=artifact,
            labels=self.labels,
            engine=engine.name,
            precision=engine.precision,
            top_k=post.top_k,
            exif=pictures.exif,
            decode=pictures.decode,
            column=pictures.column,
            keep=pictures.keep,
            confidence=answers.confidence,
            query=answers.query,
            abstention=post.abstentions,
            features=Output.FEATURES in options.extra,
        ).settings
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
            logits, *extra = self.compute(np.stack([picture.pixels for picture in pictures]))
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

    def compute(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Compute what the engine does; where its memory is too short, in halves, and later batches as well.

        Raises:
            EngineError: the engine fails, or has too little memory for one picture.
        """
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
