"""The predictor: pictures -> batches -> logits -> probabilities -> top-k with labels.

Pictures are decoded several at once and computed in batches; results come in input order, one per picture, failures
included. Nothing here prints or knows where results go.
"""

import dataclasses
import hashlib
import json
import shlex
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NoReturn, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from mfcli.artifact.ensure import ensure_artifact
from mfcli.artifact.file import FORMAT_VERSION, Artifact
from mfcli.errors import EngineError, ModelError, PictureError, UsageError, memory_error
from mfcli.files import is_folder, is_url
from mfcli.inference.engines import choose_engine, load_engine
from mfcli.inference.engines.base import Engine, EngineName, EngineOptions, Precision
from mfcli.inference.loading import IsolationError, LoadedPicture, OutOfMemoryError, PictureLoader, load_here
from mfcli.inference.pipeline import Done, PipelineConfig, run_pipeline
from mfcli.inputs.codecs import DecodeMode, formats_with
from mfcli.inputs.pictures import Picture, check_picture, is_many, make_source
from mfcli.inputs.selection import Selection
from mfcli.inputs.sources import Source
from mfcli.models.preprocess import PreprocessOverrides, make_preprocess_plan
from mfcli.models.registry import Variant, default_variant, find_variant
from mfcli.results import (
    PREDICT_SCHEMA,
    Abstain,
    Abstention,
    Concept,
    Failure,
    Label,
    Match,
    Output,
    PictureResult,
    Prediction,
    Progress,
    Query,
)
from mfcli.runs import RunInfo, RunSettings
from mfcli.settings import (
    DEFAULT_CONFIDENCE,
    DEFAULT_DECODE_TIMEOUT_S,
    DEFAULT_MAX_ERROR,
    DEFAULT_MAX_PIXELS,
    DEFAULT_TOP_K,
    MIN_CONFIDENCE,
    Settings,
    usable_cores,
)

if TYPE_CHECKING:
    from mfcli.inference.isolation import DecoderPool
    from mfcli.models.concepts import HeadConcepts
    from mfcli.models.label_files import Labels
    from mfcli.models.meanings import Target

Name = TypeVar("Name", bound=StrEnum)
TopK = int | Literal["all"] | None


@dataclass(frozen=True, slots=True)
class PreparedPicture:
    """A decoded and preprocessed picture, ready for the engine; `pixels` is float32 (3, H, W)."""

    source: Source
    width: int
    height: int
    pixels: NDArray[np.float32]
    thumbnail: Image | None


_MAX_PIXELS_HERE = 2**24
"""A single picture with more is loaded in a process of its own: its decoder may not be interruptible."""


@dataclass(frozen=True, slots=True)
class RunFingerprint:
    """Everything that shapes the answers of a run; equal fingerprints give equal answers."""

    artifact: Artifact
    labels: tuple[Label, ...]
    engine: EngineName
    precision: Precision
    top_k: int
    exif: bool
    decode: DecodeMode
    confidence: float | None
    query: Query | None
    abstention: tuple[Abstain, float] | None
    features: bool

    @property
    def run(self) -> str:
        """16 hex digits over all of it."""
        labels = [dataclasses.astuple(label) for label in self.labels]
        return _digest(self._fields() | {"labels": labels})[:16]

    @property
    def settings(self) -> RunSettings:
        """The run with all of it by parameter, small enough to be kept beside the results; the labels as a digest."""
        labels = _digest([dataclasses.astuple(label) for label in self.labels])[:16]
        values = self._fields() | {"labels": labels, "decode": self.decode}
        return RunSettings(self.run, json.loads(json.dumps(values)))  # as it is read back

    def _fields(self) -> dict[str, Any]:
        return {
            "schema": PREDICT_SCHEMA,
            "format_version": FORMAT_VERSION,
            "model": self.artifact.variant,
            "artifact": self.artifact.key,
            "weights_sha256": self.artifact.weights_sha256,
            "preprocess": dataclasses.asdict(self.artifact.plan),
            "engine": self.engine,
            "precision": self.precision,
            "top_k": self.top_k,
            "exif": self.exif,
            "confidence": self.confidence,
            **({} if self.decode is DecodeMode.EXACT else {"decode": self.decode}),  # new: exact runs keep their digest
            **({} if self.query is None else {"query": dataclasses.asdict(self.query)}),
            **({} if self.abstention is None else {"abstention": self.abstention}),
            **({"features": True} if self.features else {}),
        }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class _Clock:
    """Adds up seconds of several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        with self._lock:
            self.total_s += seconds


class Predictor:
    """A loaded model that turns pictures into ranked, labelled predictions.

    Attributes:
        artifact: what was loaded.
        labels: the names in use, one per class in head order.
        engine: what computes.
        targets: what the query's words mean to this model.
        run_info: what the rows say of the run.
        settings: everything that shapes the answers.
    """

    def __init__(
        self,
        artifact: Artifact,
        engine: Engine,
        *,
        labels: tuple[Label, ...] | None = None,
        top_k: TopK = None,
        exif: bool = True,
        decode: DecodeMode = DecodeMode.EXACT,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        formats: Iterable[str] = (),
        offline: bool = False,
        options: EngineOptions = EngineOptions(),  # noqa: B008 - frozen
        thumbnail_side: int | None = None,
        logits: bool = False,
        confidence: float | None = DEFAULT_CONFIDENCE,
        query: Query | None = None,
        abstain: Abstain = Abstain.BOTH,
        max_error: float = DEFAULT_MAX_ERROR,
        isolate: bool = True,
        decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S,
    ) -> None:
        """Bind a model to the settings of a run.

        Args:
            artifact: preprocessing and labels.
            engine: holds the same model.
            labels: names to use instead of the artifact's.
            top_k: predictions per picture, or `all`; None for five, or for all where there are fewer classes.
            exif: whether pictures are turned upright by their EXIF orientation.
            decode: whether JPEGs may be decoded at 1/2, 1/4 or 1/8 of their size, but at least twice what they are
                resized to.
            max_pixels: the largest picture that is decoded or resized to, in pixels.
            formats: optional picture formats to decode as well (`inputs.codecs.OPTIONAL_FORMATS`).
            offline: whether pictures may not be fetched from URLs.
            options: what the engine was loaded with.
            thumbnail_side: width and height in pixels of the thumbnails in results, at most; None for none.
            logits: whether results have the logits of all classes.
            confidence: probability that a concept holds to be named, 0.5 to 1; None to name none.
            query: what is searched for; results then have a match.
            abstain: which abstentions are shown; unfamiliar pictures need an engine that computes distances.
            max_error: the share of wrong answers among those that are not unsure.
            isolate: whether pictures are decoded in processes of their own where they are many, come from an archive or
                a URL, or are large; False for never, with fewer guarantees.
            decode_timeout_s: seconds that decoding a picture may take.

        Raises:
            AmbiguousWordError: a word of the query has several meanings.
            UsageError: query, confidence, top_k, or the number of labels, does not fit the head; a format is unknown.
        """
        classes = len(artifact.labels)
        if top_k is None:
            top_k = min(DEFAULT_TOP_K, classes)
        elif top_k == "all":
            top_k = classes
        if not 1 <= top_k <= classes:
            raise UsageError(
                f"top_k={top_k} is not between 1 and the {classes} classes of {artifact.variant}",
                f"top_k={min(max(top_k, 1), classes)}",
            )
        _check_confidence(confidence)
        if labels is not None and len(labels) != classes:
            raise UsageError(
                f"{len(labels)} label{'s' * (len(labels) != 1)} for the {classes} classes of {artifact.variant}",
                f"give {classes} names, in the head's order",
            )
        self.artifact = artifact
        self.labels = artifact.labels if labels is None else labels
        self.engine = engine
        self._options = options
        self._loader = PictureLoader(artifact.plan, exif, max_pixels, formats_with(formats), thumbnail_side, decode)
        self._clock = _Clock()
        self._isolate = isolate
        self._decode_timeout_s = decode_timeout_s
        self._selection = Selection(offline=offline)
        self._keeps_logits = logits
        self._confidence = confidence
        if query is not None and not 0 < query.min_prob <= 1:
            raise UsageError(f"min_prob={query.min_prob:g} is not more than 0 and at most 1", "min_prob=0.5")
        self._query = query
        self.targets = () if query is None else self._resolve(query)
        thresholds = artifact.thresholds
        self._max_distance, self._min_prob = None, 0.0
        if thresholds is not None and abstain.covers(Abstention.UNFAMILIAR):
            self._max_distance = thresholds.distance
        if thresholds is not None and abstain.covers(Abstention.UNSURE):
            self._min_prob = thresholds.find_prob(max_error)
        rule = None if thresholds is None else (abstain, max_error)
        fingerprint = RunFingerprint(
            artifact,
            self.labels,
            engine.name,
            engine.precision,
            top_k,
            exif,
            decode,
            confidence,
            query,
            rule,
            features=Output.FEATURES in options.extra,
        )
        self.settings = fingerprint.settings
        self.run_info = RunInfo(
            model=artifact.variant,
            weights_sha256=artifact.weights_sha256,
            run=self.settings.run,
            engine=engine.name,
            precision=engine.precision,
            top_k=top_k,
            confidence=confidence,
            query=() if query is None else query.words,
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
            return self._predict_one(self._make_source(pictures))  # type: ignore[arg-type]  # or raises
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
        sources = map(self._make_source, pictures)
        if workers == 0:
            return map(self._predict_one, sources)
        config = self.pipeline_config(batch_size, workers)
        self.start_decoders(config)
        prepare = partial(self.prepare, alone=False)
        return run_pipeline(sources, prepare, self._compute, config, self.prepare, attrgetter("held_bytes"))

    def pipeline_config(self, batch_size: int | None = None, workers: int | None = None) -> PipelineConfig:
        """Return the sizes of the pipeline that `stream` runs with these arguments."""
        return PipelineConfig(workers or usable_cores(), self.engine.streams, batch_size or self.engine.batch_size)

    def start_decoders(self, config: PipelineConfig) -> None:
        """Start the processes that decode, if any do, before a pipeline runs `prepare`."""
        if self._isolate:
            try:
                self._pool.start(config.workers)
            except IsolationError:
                self._isolate = False

    @cached_property
    def _pool(self) -> "DecoderPool":
        from mfcli.inference.isolation import DecoderPool  # takes 10 ms, which a single picture does without

        return DecoderPool(self._loader, self._decode_timeout_s)

    def _make_source(self, picture: Picture) -> Source:
        return make_source(
            picture, exif=self._loader.exif, max_pixels=self._loader.max_pixels, selection=self._selection
        )

    def _predict_one(self, source: Source) -> PictureResult:
        made = self.prepare(source, is_single=True)
        return made.result if isinstance(made, Done) else self._compute([made])[0]

    @property
    def spare_decoding_s(self) -> float:
        """Seconds of processor time, so far, for decoding and resizing JPEGs that decode=scaled would scale down."""
        return self._clock.total_s

    def prepare(
        self, source: Source, *, alone: bool = True, is_single: bool = False
    ) -> "PreparedPicture | Done[PictureResult]":
        """Decode and preprocess a picture, or return its result if that fails.

        Args:
            source: the picture.
            alone: whether no other picture is being prepared; then a lack of memory is decided, else only reported.
            is_single: whether it is not one of many, and can be loaded in this process unless it is a stranger's.

        Raises:
            MemoryError: memory is short, perhaps because of the other pictures.
            EngineError: there is too little memory for an ordinary picture.
        """
        try:
            loaded = self._load(source, alone, is_single)
        except PictureError as error:
            loaded = LoadedPicture(failure=Failure(error.code, error.message))
        except OutOfMemoryError as error:
            raise memory_error(f"decode {source.shown_name}") from error
        if loaded.failure is not None:
            return Done(self._make_result(source, loaded, (), loaded.failure))
        assert loaded.pixels is not None  # it has not failed
        self._clock.add(loaded.spare_s)
        return PreparedPicture(source, loaded.width or 0, loaded.height or 0, loaded.pixels, loaded.thumbnail)

    def _load(self, source: Source, alone: bool, is_single: bool) -> LoadedPicture:
        if source.decoded is not None:
            size = source.decoded.width, source.decoded.height
            load = partial(self._loader.preprocess, source.decoded)
            count = partial(self._loader.count_resized, *size)
            return load_here(load, count, alone=alone, timeout_s=self._decode_timeout_s)
        with source.open() as file:
            if self._isolate and not (is_single and self._is_harmless(source, file)):
                try:
                    return self._pool.load(file, alone=alone)
                except IsolationError:
                    self._isolate = False
                    return self._load(source, alone, is_single)  # the file may have been read
            return load_here(
                partial(self._loader.load, file),
                partial(self._loader.count_pixels, file),
                alone=alone,
                timeout_s=self._decode_timeout_s,
            )

    def _is_harmless(self, source: Source, file: BinaryIO) -> bool:
        """Whether a picture is the user's own, and not large."""
        if source.member is not None or is_url(source.argument):
            return False
        pixels = self._loader.count_pixels(file)
        file.seek(0)
        return pixels is None or pixels <= _MAX_PIXELS_HERE

    def _compute(self, pictures: Sequence[PreparedPicture]) -> list[PictureResult]:
        try:
            logits, *extra = self.engine.compute(np.stack([picture.pixels for picture in pictures]))
        except MemoryError as error:
            raise memory_error(f"classify {len(pictures)} pictures at once") from error
        if logits.shape[1] != len(self.labels):
            path = self.artifact.path
            raise ModelError(
                f"{path} is damaged: it has {len(self.labels)} labels for {logits.shape[1]} classes",
                f"delete it, and the next run prepares it again: rm {shlex.quote(str(path))}",
            )
        for picture, row in zip(pictures, logits, strict=True):
            if not np.isfinite(row).all():
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
        outputs = dict(zip(self._options.extra, extra, strict=True))
        features = outputs.get(Output.FEATURES, [None] * len(logits))
        distances = outputs[Output.DISTANCE].ravel().tolist() if Output.DISTANCE in outputs else [None] * len(logits)
        results = []
        for picture, row, own, distance in zip(pictures, logits, features, distances, strict=True):
            predictions, concept = self.rank(row)
            abstained = self.judge(predictions[0].prob, distance)
            results.append(self._make_result(picture.source, picture, predictions, None, concept, own, abstained))
        if self._keeps_logits:
            results = [replace(r, logits=row) for r, row in zip(results, logits, strict=True)]
        if (query := self._query) is None:
            return results
        return [replace(r, match=self._search(query, row)) for r, row in zip(results, logits, strict=True)]

    def _make_result(
        self,
        source: Source,
        picture: LoadedPicture | PreparedPicture,
        predictions: tuple[Prediction, ...],
        error: Failure | None,
        concept: Concept | None = None,
        features: NDArray[np.float32] | None = None,
        abstained: Abstention | None = None,
    ) -> PictureResult:
        return PictureResult(
            input=source.input,
            input_b64=source.input_b64,
            member=source.member,
            width=picture.width,
            height=picture.height,
            predictions=predictions,
            error=error,
            run=self.run_info,
            concept=concept,
            kept=source.kept,
            features=features,
            abstained=abstained,
            thumbnail=picture.thumbnail,
        )

    def judge(self, prob: float, distance: float | None) -> Abstention | None:
        """Return why an answer should not be trusted, as far as the model knows and the caller asked.

        Args:
            prob: the largest probability.
            distance: how far the picture is from the classes; None if that is not computed.
        """
        if distance is not None and self._max_distance is not None and distance > self._max_distance:
            return Abstention.UNFAMILIAR
        return Abstention.UNSURE if prob < self._min_prob else None

    def rank(self, logits: NDArray[np.float32]) -> tuple[tuple[Prediction, ...], Concept | None]:
        """Rank float32 logits (classes,), equal ones in head order, and name the concept over them."""
        probs = _softmax(logits)
        order = np.argsort(-logits, kind="stable")[: self.run_info.top_k]
        predictions = tuple(
            Prediction(rank, int(index), self.labels[index].wnid, self.labels[index].name, float(probs[index]))
            for rank, index in enumerate(order, start=1)
        )
        concept = None
        if self._confidence is not None and self._concepts is not None:
            concept = self._concepts.name(probs, self._confidence)
        return predictions, concept

    def _search(self, query: Query, logits: NDArray[np.float32]) -> Match:
        probs = _softmax(logits)
        sums = [min(float(np.add.reduceat(probs[t.members], [0])[0]), 1.0) for t in self.targets]  # as concepts are
        concepts = (Concept(t.wnid, t.label, p, len(t.members)) for t, p in zip(self.targets, sums, strict=True))
        return Match(query.matches(sums), tuple(concepts))

    def _resolve(self, query: Query) -> "tuple[Target, ...]":
        from mfcli.models.concepts import HeadConcepts
        from mfcli.models.meanings import resolve

        concepts = self._concepts or HeadConcepts(())
        return tuple(resolve(word, self.labels, concepts) for word in query.words)

    @cached_property
    def _concepts(self) -> "HeadConcepts | None":
        """The concepts over the classes; None, and not loaded, where no class has a WordNet id."""
        if all(label.wnid is None for label in self.labels):
            return None
        from mfcli.models.concepts import HeadConcepts

        return HeadConcepts(self.labels)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probs: NDArray[np.float64] = shifted / shifted.sum()
    return probs


def _check_confidence(confidence: float | None) -> None:
    if confidence is not None and not MIN_CONFIDENCE <= confidence <= 1:
        raise UsageError(
            f"confidence={confidence:g} is not between {MIN_CONFIDENCE} and 1", f"confidence={DEFAULT_CONFIDENCE}"
        )


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
    abstain: Abstain | str = Abstain.BOTH,
    max_error: float = DEFAULT_MAX_ERROR,
    isolate: bool = True,
    decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S,
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
        logits: see `Predictor`.
        thumbnail_side: see `Predictor`.
        confidence: see `Predictor`.
        query: see `Predictor`.
        abstain: which abstentions are shown: off, unsure, unfamiliar or both; only models of `mf train` abstain.
        max_error: see `Predictor`.
        isolate: see `Predictor`.
        decode_timeout_s: see `Predictor`.
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
    _check_confidence(confidence)
    if isinstance(top_k, int) and top_k < 1:  # checked before anything is downloaded or prepared
        raise UsageError(f"top_k={top_k} is less than 1", "top_k=1")
    engine = _parse_choice(EngineName, engine, "engine")
    decode = _parse_choice(DecodeMode, decode, "decode")
    abstain = _parse_choice(Abstain, abstain, "abstain")
    if not 0 < max_error < 1:
        raise UsageError(f"max_error={max_error:g} is not between 0 and 1", f"max_error={DEFAULT_MAX_ERROR:g}")
    names = None
    if labels is not None:
        from mfcli.models.label_files import make_labels

        names = make_labels(labels)
    extra = (Output.FEATURES,) if features else ()
    options = EngineOptions(device, _parse_choice(Precision, precision, "precision"), threads, extra)
    named = None if model is None else find_variant(model)
    if weights and is_folder(Path(weights)):
        from mfcli.models.model_folder import read_model_folder

        folder = read_model_folder(Path(weights), named, settings)
        artifact = _ensure_preprocessing(overrides.apply(folder.variant), folder.weights_file, settings, progress)
        names = names or folder.labels
        folder.check_classes(len(artifact.labels))
    else:
        variant = overrides.apply(named or default_variant(settings))
        if variant.folder is not None and choose_engine(engine, options) is EngineName.TORCH:
            raise EngineError(
                f"{variant.name} is a model of mf train, which torch cannot run", "engine=onnxruntime device=cpu"
            )
        artifact = _ensure_preprocessing(variant, Path(weights) if weights else None, settings, progress)
    if artifact.thresholds is not None and abstain.covers(Abstention.UNFAMILIAR):
        options = replace(options, extra=(*options.extra, Output.DISTANCE))
    loaded = load_engine(engine, artifact, options)
    return Predictor(
        artifact,
        loaded,
        labels=names,
        top_k=top_k,
        exif=exif,
        decode=decode,
        max_pixels=max_pixels,
        formats=formats,
        offline=settings.offline,
        options=options,
        thumbnail_side=thumbnail_side,
        logits=logits,
        confidence=confidence,
        query=query,
        abstain=abstain,
        max_error=max_error,
        isolate=isolate,
        decode_timeout_s=decode_timeout_s,
    )


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
