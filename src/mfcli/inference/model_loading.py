"""From a name, a checkpoint or a folder, and the options of a run, to a predictor."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mfcli.artifact.ensure import ensure_artifact
from mfcli.artifact.file import Artifact
from mfcli.errors import UsageError
from mfcli.files import is_folder
from mfcli.inference.engines import load_engine
from mfcli.inference.engines.base import EngineName, EngineOptions, Precision
from mfcli.inference.postprocess import PostprocessOptions, TopK
from mfcli.inference.predictor import Predictor
from mfcli.inference.preparation import PictureOptions
from mfcli.inputs.codecs import DecodeMode, formats_with
from mfcli.models.preprocess import PreprocessOverrides, make_preprocess_plan
from mfcli.models.registry import Variant, default_variant, find_variant
from mfcli.results import Abstain, Abstention, Label, Output, Progress, Query
from mfcli.settings import (
    DEFAULT_CONFIDENCE,
    DEFAULT_DECODE_TIMEOUT_S,
    DEFAULT_MAX_PIXELS,
    Settings,
)

if TYPE_CHECKING:
    from mfcli.models.label_files import Labels

_Choice = TypeVar("_Choice", bound=StrEnum)


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
    # all options are checked before anything is downloaded or prepared
    overrides = PreprocessOverrides.parse(
        mean=mean, std=std, crop_pct=crop_pct, interpolation=interpolation, input_size=input_size
    )
    abstain = None if abstain is None else _parse_choice(Abstain, abstain, "abstain")
    answers = PostprocessOptions(top_k, confidence, query, abstain, max_error, logits)
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
    return replace(ensure_artifact(row, weights, settings, progress), plan=make_preprocess_plan(variant))


def _parse_choice(kind: type[_Choice], value: str, what: str) -> _Choice:
    try:
        return kind(value)
    except ValueError as error:
        raise UsageError(f"unknown {what} {value!r}", f"one of {', '.join(kind)}") from error
