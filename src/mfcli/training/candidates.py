"""What a training can end with: a head on the base model's features (the probe), or the whole backbone fine-tuned.

Of the pictures to learn from a fifth, fold 0, is held out of the fine-tuning. It chooses the epoch, the temperature and
the thresholds, and which of the two is kept; the pictures to judge by choose nothing.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mfcli.artifact.file import Artifact, open_artifact
from mfcli.errors import ModelError, UsageError
from mfcli.files import sha256_of, sha256_of_json
from mfcli.inference.engines import choose_engine, load_engine
from mfcli.inference.engines.base import EngineName, EngineOptions
from mfcli.inference.predictor import Predictor
from mfcli.inference.preparation import PictureOptions
from mfcli.inputs.dataset import Split
from mfcli.models.abstention import Familiarity, Thresholds, fit_familiarity, list_error_bounds
from mfcli.models.calibration import fit_temperature, log_loss
from mfcli.models.head import FittedHead, Head, Method, TrainingSet, fit_head
from mfcli.models.labels import make_class_labels
from mfcli.models.metrics import Answers, compute_figures, judge
from mfcli.models.own import make_own_variant
from mfcli.models.preprocess import PreprocessPlan
from mfcli.models.registry import Variant, find_variant
from mfcli.results import Failure, Label, Output, Progress
from mfcli.settings import Settings
from mfcli.training.assignment import AssignedPicture, index_labels, list_classes, make_training_set
from mfcli.training.decoding import describe_lost
from mfcli.training.folder import NewFolder
from mfcli.training.request import FinetuneOptions, TrainRequest
from mfcli.training.views import Views, compute_views

if TYPE_CHECKING:
    from mfcli.models.checkpoint import Weights

_HELD_OUT_FOLD = 0


class Kind(StrEnum):
    """How a model was trained."""

    PROBE = "probe"
    FINETUNED = "finetuned"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the new model does not know: how far pictures are from its classes, and its thresholds."""

    familiarity: Familiarity
    thresholds: Thresholds


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained model that has not been written.

    Attributes:
        kind: how it was trained.
        base: the name of the base model.
        backbone: computes the features.
        pictures: all of the dataset, with their features.
        fitted: the head.
        limits: what it does not know.
        weights: of the whole model; None where the backbone is that of the base model.
        epochs: the figures of each; none for a probe.
        best_epoch: the one that was taken, counted from 1.
    """

    kind: Kind
    base: str
    backbone: Predictor
    pictures: Sequence[AssignedPicture]
    fitted: FittedHead
    limits: Limits
    weights: "Weights | None" = None
    epochs: Sequence[dict[str, float]] = ()
    best_epoch: int = 0


def fit_probe(
    backbone: Predictor,
    pictures: Sequence[AssignedPicture],
    classes: tuple[str, ...],
    request: TrainRequest,
    is_over: Callable[[], bool],
) -> Candidate:
    """Fit a head to the base model's features.

    Raises:
        UsageError: the features are not finite.
    """
    training = make_training_set(pictures, classes, request.class_weight, request.seed)
    with ThreadPoolExecutor(1) as pool:  # on two cores the fits of five folds leave room
        familiarity = pool.submit(fit_familiarity, training)
        fitted = fit_head(training, is_over)
    limits = _make_limits(training, fitted, *familiarity.result())
    return Candidate(Kind.PROBE, backbone.artifact.variant, backbone, pictures, fitted, limits)


def _make_limits(
    training: TrainingSet, fitted: FittedHead, familiarity: Familiarity, max_distance: float | None
) -> Limits:
    """Return the limits of a model, from its answers for pictures in the folds in which they were judged."""
    answers = judge(fitted.out_of_fold[training.seen], training.targets[training.seen])
    return Limits(familiarity, Thresholds(list_error_bounds(answers.confidence, answers.are_right), max_distance))


def check_device(options: FinetuneOptions) -> None:
    """Fail early where nothing can be fine-tuned.

    Raises:
        EngineError: torch or timm cannot be loaded, or this machine has no such device.
        UsageError: the device is unknown.
    """
    from mfcli.models.checkpoint import require_packages

    choose_engine(EngineName.TORCH, EngineOptions(options.device))
    require_packages("torch", "timm")
    from mfcli.inference.engines.torch import find_device

    find_device(options.device)


def finetune_backbone(
    probe: Candidate,
    classes: tuple[str, ...],
    request: TrainRequest,
    folder: NewFolder,
    settings: Settings,
    is_over: Callable[[], bool],
    progress: Progress,
) -> Candidate:
    """Train the backbone of a probe, or go on with a training that was interrupted.

    Args:
        probe: on the base model.
        classes: in head order.
        request: what is asked for, with options of a fine-tuning.
        folder: has the state of the training.
        settings: say whether the artifact is compared with torch.
        is_over: asked after each epoch whether the time is over.
        progress: told the steps, the figures of each epoch, and the counts of pictures.

    Raises:
        EngineError: torch or timm cannot be loaded, the device cannot be used, or the training diverged.
        ModelError: the base model's checkpoint is not on this machine.
        OutputError: the state is damaged, or cannot be written.
        UsageError: there are too few pictures, or the state is of other ones.
    """
    assert request.finetune is not None
    from mfcli.models.checkpoint import read_checkpoint
    from mfcli.training.finetune import Lessons, finetune

    training = make_training_set(probe.pictures, classes, request.class_weight, request.seed)
    held_out = training.folds == _HELD_OUT_FOLD
    if not held_out.any():
        raise UsageError("too few pictures to hold some out of the fine-tuning", "add pictures, or finetune=False")
    base = probe.backbone.artifact
    variant = make_own_variant(find_variant(base.variant), request.output.name, len(classes), folder.target)
    variant = variant.with_input_size(*base.plan.crop_size)
    sources = [own.labelled.source for own in probe.pictures if own.split is Split.TRAIN]
    counts = np.bincount(training.targets)
    class_weights = np.bincount(training.targets, training.weights) / counts * len(sources)
    tuned = finetune(
        variant.architecture,
        _read_backbone(base) | _fit_start(training, held_out),
        base.plan,
        Lessons(sources, training.targets, held_out, class_weights),
        request.finetune,
        request.seed,
        folder.state,
        _fingerprint(probe, request),
        is_over,
        progress,
        request.decode_timeout_s,
    )
    digest = sha256_of(tuned.path)
    weights = read_checkpoint(tuned.path, variant, digest).weights
    backbone = _load_backbone(variant, tuned.path, digest, base.plan, request, make_class_labels(classes), settings)
    pictures = _recompute(backbone, probe.pictures, progress)
    training = make_training_set(pictures, classes, request.class_weight, request.seed)
    held_out = training.folds == _HELD_OUT_FOLD
    training = replace(training, folds=np.where(held_out, _HELD_OUT_FOLD, -1), other_folds=())
    fitted = _calibrate(Head(weights["head.weight"], weights["head.bias"]), training)
    limits = _make_limits(training, fitted, *fit_familiarity(training))
    return Candidate(
        Kind.FINETUNED, probe.base, backbone, pictures, fitted, limits, weights, tuned.epochs, tuned.best_epoch
    )


def _load_backbone(
    variant: Variant,
    checkpoint: Path,
    sha256: str,
    plan: PreprocessPlan,
    request: TrainRequest,
    labels: tuple[Label, ...],
    settings: Settings,
) -> Predictor:
    """Build the artifact of a fine-tuned checkpoint beside it, and load it to compute features."""
    from mfcli.artifact.build import build_artifact

    path, options = checkpoint.with_name("backbone.onnx"), EngineOptions(extra=(Output.FEATURES,))
    build_artifact(variant, checkpoint, sha256, path, labels=labels, compare=settings.compare)
    artifact = replace(open_artifact(path, variant, None, checkpoint), plan=plan)
    pictures = PictureOptions(decode_timeout_s=request.decode_timeout_s)
    return Predictor(artifact, load_engine(EngineName.AUTO, artifact, options), pictures=pictures, options=options)


def _read_backbone(base: Artifact) -> "Weights":
    from mfcli.models.checkpoint import read_checkpoint

    if base.checkpoint is None:
        raise ModelError(
            f"fine-tuning needs the checkpoint of {base.variant}", f"mf download {base.variant}, or weights=FILE"
        )
    weights = read_checkpoint(base.checkpoint, find_variant(base.variant), base.weights_sha256).weights
    return {name: array for name, array in weights.items() if not name.startswith("head.")}


def _fit_start(training: TrainingSet, held_out: NDArray[np.bool_]) -> "Weights":
    """Return a head that was not fitted to the pictures held out, whose log loss would then be too good to be true."""
    kept = ~held_out
    targets, folds = training.targets[kept], np.maximum(training.folds[kept] - 1, -1)
    for index in range(training.num_classes):
        if len(set(folds[targets == index].tolist())) == 1:  # else a fold would have nothing to learn the class from
            folds[targets == index] = -1
    weights = training.weights[kept] / training.weights[kept].sum()
    head = fit_head(TrainingSet(training.features[kept], training.fitted[kept], targets, folds, weights)).head
    return {"head.weight": head.weight, "head.bias": head.bias}


def _fingerprint(probe: Candidate, request: TrainRequest) -> str:
    """Return a digest of everything that shapes the weights."""
    artifact = probe.backbone.artifact
    pictures = [
        (own.known_views.digest.hex(), own.label, own.fold) for own in probe.pictures if own.split is Split.TRAIN
    ]
    values = [request.list_arguments(), artifact.weights_sha256, asdict(artifact.plan), pictures]
    return sha256_of_json(values)


def _recompute(
    backbone: Predictor, pictures: Sequence[AssignedPicture], progress: Progress
) -> Sequence[AssignedPicture]:
    """Return the pictures with the features of another backbone; those that can no longer be read are left out.

    Raises:
        UsageError: of a class, of those held out or of a split none can be read.
    """
    used = [own for own in pictures if own.split is not None]
    views = compute_views(backbone, [own.labelled.source for own in used], None, progress)
    found = dict(zip((own.labelled for own in used), views, strict=True))
    recomputed = [_replace_views(own, found.get(own.labelled)) for own in pictures]
    if lost := [own.labelled.source for own in used if isinstance(found[own.labelled], Failure)]:
        progress(describe_lost(lost))
    if _list_needed(recomputed) != _list_needed(pictures):
        raise UsageError(f"too few pictures can be read again: {describe_lost(lost)}", "put them back")
    return recomputed


def _replace_views(picture: AssignedPicture, views: Views | Failure | None) -> AssignedPicture:
    if isinstance(views, Failure):
        return AssignedPicture(picture.labelled, None, None, f"{views.code}: {views.message}")
    return replace(picture, views=views)


def _list_needed(pictures: Sequence[AssignedPicture]) -> tuple[object, ...]:
    """Return the classes and the splits that have pictures, and whether any are held out."""
    splits = {own.split for own in pictures} | {None}
    return list_classes(pictures), splits, any(own.fold == _HELD_OUT_FOLD for own in pictures)


def _calibrate(head: Head, training: TrainingSet) -> FittedHead:
    """Return a head with the temperature that suits the pictures in a fold, which it has not learned."""
    seen = training.seen
    logits = head.logits(training.features[seen]).astype(np.float64)
    targets, weights = training.targets[seen], training.weights[seen]
    temperature = fit_temperature(logits, targets, weights)
    out_of_fold = np.full((len(seen), training.num_classes), np.nan)
    out_of_fold[seen] = logits / temperature
    return FittedHead(
        head=Head((head.weight / temperature).astype(np.float32), (head.bias / temperature).astype(np.float32)),
        method=Method.FINETUNING,
        strength=None,
        temperature=temperature,
        losses=[(Method.FINETUNING, None, log_loss(out_of_fold[seen], targets, weights))],
        out_of_fold=out_of_fold,
    )


def judge_held_out(candidate: Candidate, classes: tuple[str, ...]) -> Answers:
    """Return the answers for the pictures held out of the fine-tuning, by models that have not learned them."""
    learned = [own for own in candidate.pictures if own.split is Split.TRAIN]
    held_out = np.array([own.fold == _HELD_OUT_FOLD for own in learned])
    targets = index_labels(learned, classes)
    return judge(candidate.fitted.out_of_fold[held_out], targets[held_out])


def choose(candidates: Sequence[Candidate], classes: tuple[str, ...]) -> Candidate:
    """Return the candidate with the least log loss on the pictures held out; a single one is not judged."""
    if len(candidates) == 1:
        return candidates[0]
    return min(candidates, key=lambda own: compute_figures(judge_held_out(own, classes), len(classes))["log_loss"])
