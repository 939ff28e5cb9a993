"""Teach a model the user's own classes: features of pictures in, a folder with a model and its figures out.

The pictures to judge by decide nothing: neither the head, nor its strength, nor its temperature depends on them.
"""

import contextlib
import glob
import hashlib
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfcli.artifact.file import update_sidecar
from mfcli.errors import ModelError, NoInputsError, OutputError, UsageError
from mfcli.inference.predictor import Predictor, load_predictor
from mfcli.inference.views import Views, compute_views
from mfcli.inputs.dataset import Dataset, LabelledPicture, Split, join_names, read_dataset
from mfcli.models.abstention import Familiarity, Thresholds, fit_familiarity, list_error_bounds
from mfcli.models.head import FittedHead, TrainingSet, fit_head
from mfcli.models.labels import make_class_labels
from mfcli.models.metrics import compute_figures, judge, list_class_figures, list_confusions
from mfcli.models.own import ARGS_FILE, MODEL_FILE
from mfcli.models.registry import VARIANTS
from mfcli.models.splits import divide, group_duplicates
from mfcli.outputs.training import METRICS_FILE, JudgedPicture, SplitRow, TrainingReport, write_report
from mfcli.results import Abstention, Failure, PictureResult, Progress
from mfcli.settings import Settings
from mfcli.signals import defer_signals
from mfcli.version import __version__

FOLDS = 5
FEW = 5
"""Pictures below which a class is reported."""
_HEAD_FILE = "head.safetensors"
_MAX_DIFFERENCE = 1e-3
"""Between the logits of the written model and of its head, over the largest one."""


class ClassWeight(StrEnum):
    """What counts the same: every picture, or every class."""

    NONE = "none"
    BALANCED = "balanced"


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What to train on, and how.

    Attributes:
        data: a folder or CSV file, see `inputs.dataset.read_dataset`.
        output: the folder to write.
        model: the base model; None for MF_MODEL or the bundled one.
        weights: the base model's checkpoint; None for the published one.
        class_weight: what counts the same.
        seed: another one divides the pictures differently.
        time_limit_s: when no further strength is tried; None for no limit.
        overwrite: whether a folder that is there is replaced.
        resume: whether a folder that is there is kept if it comes from the same arguments.
    """

    data: Path
    output: Path
    model: str | None = None
    weights: Path | None = None
    class_weight: ClassWeight = ClassWeight.NONE
    seed: int = 0
    time_limit_s: float | None = None
    overwrite: bool = False
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What the new model does not know: how far pictures are from its classes, and its thresholds."""

    familiarity: Familiarity
    thresholds: Thresholds


@dataclass(frozen=True, slots=True)
class AssignedPicture:
    """A picture with its views, and what it is used for.

    Attributes:
        labelled: the picture.
        views: None if it cannot be read.
        split: None if it is left out.
        note: why, or what else there is to know about it.
        fold: in which it is judged while the head is chosen; -1 for none.
        group: of exact and near duplicates; -1 for none.
    """

    labelled: LabelledPicture
    views: Views | None
    split: Split | None
    note: str = ""
    fold: int = -1
    group: int = -1

    @property
    def label(self) -> str:
        """The name of its class."""
        return self.labelled.label

    @property
    def known_views(self) -> Views:
        """The views of a picture that can be read."""
        assert self.views is not None
        return self.views


def train(request: TrainRequest, settings: Settings, progress: Progress = lambda _: None) -> dict[str, Any]:
    """Train a head, write the folder, and return its figures.

    Features are kept in the cache, so that a training that was interrupted goes on where it was.

    Args:
        request: what to do.
        settings: locate the cache.
        progress: told notes, and the counts of pictures.

    Raises:
        EngineError: the engine fails.
        ModelError: the base model is unknown or cannot be obtained.
        NoInputsError: no picture can be read.
        OutputError: the folder is there, or cannot be written.
        UsageError: the dataset is not usable, see `inputs.dataset.read_dataset`.
    """
    started = time.monotonic()
    _restore(request.output)
    if (finished := _read_finished(request)) is not None:
        progress(f"{request.output} is finished")
        return finished
    dataset = read_dataset(request.data)
    predictor = load_predictor(
        request.model, weights=request.weights, features=True, abstain="off", settings=settings, progress=progress
    )
    views = compute_views(predictor, [picture.source for picture in dataset.pictures], settings, progress)
    pictures = assign_pictures(dataset, views, request.seed)
    classes = list_classes(pictures)
    if len(classes) < 2:
        raise NoInputsError(
            f"{len(classes)} of {len(dataset.classes)} classes have readable pictures to learn from",
            f"{_first_failure(views)}; at least two are needed",
        )
    for note in list_notes(dataset, pictures):
        progress(note)

    def is_over() -> bool:
        return request.time_limit_s is not None and time.monotonic() - started > request.time_limit_s

    training = make_training_set(pictures, classes, request)
    fitted = fit_head(training, is_over)
    familiarity, max_distance = fit_familiarity(training)
    seen = training.seen
    answers = judge(fitted.out_of_fold[seen], training.targets[seen])
    limits = Limits(familiarity, Thresholds(list_error_bounds(answers.confidence, answers.are_right), max_distance))
    with _new_folder(request.output) as folder:
        own = _write_model(folder, request, predictor, fitted, limits, classes)
        origin = {"base": predictor.artifact.variant, "data": str(request.data)}
        report = _judge(own, origin, fitted, limits, pictures, classes)
        write_report(folder, report)
    return report.metrics


def _first_failure(views: Sequence[Views | Failure]) -> str:
    return next((f"the first one that cannot be read {own.message}" for own in views if isinstance(own, Failure)), "")


def _read_finished(request: TrainRequest) -> dict[str, Any] | None:
    """Return the figures of a finished training that is to be resumed; None where there is nothing yet.

    Raises:
        OutputError: something is there that may not be replaced.
        UsageError: it comes from other arguments, or the name is that of another model.
    """
    folder = request.output
    if request.overwrite and request.resume:
        raise UsageError("overwrite=True and resume=True exclude each other", "leave one of them out")
    if folder.name.lower() in VARIANTS or not folder.name.isprintable() or folder.name in ("", "..", "bundled"):
        raise UsageError(f"{folder.name!r} cannot be the name of a model of yours", "-o runs/NAME")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not (folder / ARGS_FILE).is_file():
        raise OutputError(f"{folder} is not a folder of mf train", "name another one: -o runs/NAME")
    if request.overwrite:
        return None
    if not request.resume:
        raise OutputError(f"{folder} exists", "overwrite=True replaces it")
    try:
        args = json.loads((folder / ARGS_FILE).read_bytes())
        metrics: dict[str, Any] = json.loads((folder / METRICS_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder} is incomplete or damaged", "overwrite=True replaces it") from error
    wanted = json.loads(json.dumps(_list_arguments(request)))
    if different := [name for name, value in wanted.items() if args.get(name) != value]:
        raise UsageError(f"{folder} was trained with another {', '.join(different)}", "overwrite=True replaces it")
    return metrics


def _list_arguments(request: TrainRequest) -> dict[str, Any]:
    arguments = asdict(request) | {"data": str(request.data), "weights": request.weights and str(request.weights)}
    return {name: arguments[name] for name in ("data", "model", "weights", "class_weight", "seed", "time_limit_s")}


def assign_pictures(dataset: Dataset, views: Sequence[Views | Failure], seed: int) -> list[AssignedPicture]:
    """Decide what each picture is used for.

    Left out are unreadable pictures, and those that are there under two labels. Without pictures to judge by, a fifth
    of each class is set aside.

    Args:
        dataset: the pictures.
        views: of each, or why there are none.
        seed: another one sets others aside.
    """
    labels: dict[bytes, set[str]] = {}
    for picture, own in zip(dataset.pictures, views, strict=True):
        if isinstance(own, Views):
            labels.setdefault(own.digest, set()).add(picture.label)
    assigned = []
    for picture, own in zip(dataset.pictures, views, strict=True):
        split: Split | None = picture.split
        note = ""
        if isinstance(own, Failure):
            split, note = None, f"{own.code}: {own.message}"
        elif others := labels[own.digest] - {picture.label}:
            split, note = None, f"the same picture is in {', '.join(sorted(others))}"
        assigned.append(AssignedPicture(picture, own if isinstance(own, Views) else None, split, note))
    learned = [at for at, own in enumerate(assigned) if own.split is Split.TRAIN]
    digests = [assigned[at].known_views.digest for at in learned]
    features = np.array([assigned[at].known_views.features[0] for at in learned], np.float32)
    hashes = np.array([assigned[at].known_views.hash for at in learned], np.uint64)
    groups = group_duplicates(digests, hashes, features) if learned else np.zeros(0, np.intp)
    names = sorted({assigned[at].label for at in learned})
    targets = np.array([names.index(assigned[at].label) for at in learned], np.intp)
    set_aside = np.zeros(len(learned), bool)
    if learned and not dataset.has(Split.VAL):
        set_aside = divide(digests, groups, targets, FOLDS, f"val {seed} ") == FOLDS - 1
    kept = ~set_aside
    folds = np.full(len(learned), -1, np.intp)
    if kept.any():
        kept_digests = [digest for digest, keep in zip(digests, kept, strict=True) if keep]
        folds[kept] = divide(kept_digests, groups[kept], targets[kept], FOLDS, f"folds {seed} ")
    for index in range(len(names)):
        members = kept & (targets == index)
        if len(set(groups[members].tolist())) == 1:  # else a fold would have nothing to learn the class from
            folds[members] = -1
    for number, at in enumerate(learned):
        split = Split.VAL if set_aside[number] else Split.TRAIN
        assigned[at] = replace(assigned[at], split=split, fold=int(folds[number]), group=learned[groups[number]])
    return _mark_the_judged(assigned, set(names))


def _mark_the_judged(assigned: list[AssignedPicture], learnable: set[str]) -> list[AssignedPicture]:
    """Leave out what is of a class that cannot be learned, and mark what is also learned."""
    learned = {own.known_views.digest for own in assigned if own.split is Split.TRAIN}
    for at, own in enumerate(assigned):
        if own.split in (Split.VAL, Split.TEST):
            if own.label not in learnable:
                assigned[at] = replace(own, split=None, note="its class has no readable pictures to learn from")
            elif own.known_views.digest in learned:
                assigned[at] = replace(own, note="the same picture is in train")
    return assigned


def list_notes(dataset: Dataset, pictures: Sequence[AssignedPicture]) -> list[str]:
    """Return what the user should know of the pictures, a line each; split.csv has the details."""
    notes = []
    unreadable = [own for own in pictures if own.views is None]
    twice = [own for own in pictures if own.views is not None and own.split is None]
    leaked = [own for own in pictures if own.split is not None and own.note]
    for found, what in (
        (unreadable, "cannot be read and are left out"),
        (twice, "are under two labels, or of a class that cannot be learned, and are left out"),
        (leaked, "to judge by are also in train, which flatters the figures"),
    ):
        if found:
            names = [own.labelled.source.shown_name for own in found]
            notes.append(f"{len(found)} pictures {what}: {join_names(names)}")
    counts = Counter(own.label for own in pictures if own.split is not None)
    if gone := [name for name in (*dataset.classes, *dataset.empty) if not counts[name]]:
        notes.append(f"{len(gone)} classes have no pictures and are left out: {join_names(gone)}")
    if few := [name for name, count in sorted(counts.items()) if count < FEW]:
        notes.append(f"{len(few)} classes have fewer than {FEW} pictures: {join_names(few)}")
    judged = {own.label for own in pictures if own.split is Split.VAL}
    if unjudged := [name for name in sorted(counts) if name not in judged]:
        notes.append(f"{len(unjudged)} classes have no pictures to judge by: {join_names(unjudged)}")
    return notes


def list_classes(pictures: Sequence[AssignedPicture]) -> tuple[str, ...]:
    """Return the classes that can be learned, in head order."""
    return tuple(sorted({picture.label for picture in pictures if picture.split is Split.TRAIN}))


def make_training_set(
    pictures: Sequence[AssignedPicture], classes: tuple[str, ...], request: TrainRequest
) -> TrainingSet:
    """Return what the head is fitted to: the means of a picture and its mirror image."""
    learned = [own for own in pictures if own.split is Split.TRAIN]
    features = np.stack([own.known_views.features for own in learned])
    indices = {name: index for index, name in enumerate(classes)}
    targets = np.array([indices[own.label] for own in learned], np.intp)
    weights = np.ones(len(learned))
    if request.class_weight is ClassWeight.BALANCED:
        weights /= np.bincount(targets)[targets]
    folds = np.array([own.fold for own in learned], np.intp)
    return TrainingSet(features[:, 0], features.mean(1), targets, folds, weights / weights.sum())


def _list_left(target: Path, part: str) -> list[Path]:
    """Return the hidden folders that killed processes have left beside a folder."""
    return sorted(target.parent.glob(f".{glob.escape(target.name)}.*.{part}"))


def _restore(target: Path) -> None:
    """Bring back the folder that a process was killed while replacing, and remove it where it was replaced."""
    with contextlib.suppress(OSError):
        for old in _list_left(target, "old"):
            shutil.rmtree(old) if target.exists() else old.replace(target)


@contextlib.contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder beside the target that takes its place at the end, as a whole.

    Raises:
        OutputError: it cannot be written.
    """
    new, old = (target.with_name(f".{target.name}.{os.getpid()}.{part}") for part in ("part", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in _list_left(target, "part"):
            shutil.rmtree(left, ignore_errors=True)
        new.mkdir()
        yield new
        with defer_signals():
            if target.exists():
                target.replace(old)
            new.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}", "name another folder: -o DIR") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        _restore(target)


def _write_model(
    folder: Path,
    request: TrainRequest,
    base: Predictor,
    fitted: FittedHead,
    limits: "Limits",
    classes: tuple[str, ...],
) -> Predictor:
    """Write the head, the artifact and the arguments, and return the model as it will be loaded."""
    from safetensors.numpy import save

    from mfcli.artifact.own import replace_head

    head = fitted.head
    origin = {"base": base.artifact.variant, "base_weights_sha256": base.artifact.weights_sha256, "classes": classes}
    data = save({"head.weight": head.weight, "head.bias": head.bias}, {"mfcli": json.dumps(origin)})
    (folder / _HEAD_FILE).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    name, labels = request.output.name, make_class_labels(classes)
    extra = {"base": origin, "temperature": fitted.temperature, "thresholds": limits.thresholds.to_json()}
    model = replace_head(base.artifact, name, head.weight, head.bias, labels, digest, limits.familiarity, extra)
    path = folder / MODEL_FILE
    path.write_bytes(model)
    sha256, mtime_ns = hashlib.sha256(model).hexdigest(), path.stat().st_mtime_ns
    update_sidecar(path, sha256=sha256, size_bytes=len(model), mtime_ns=mtime_ns)
    arguments = {"name": name, "base": base.artifact.variant, "num_classes": len(classes)} | _list_arguments(request)
    (folder / ARGS_FILE).write_text(json.dumps(arguments | {"mfcli": __version__}, indent=1))
    own = load_predictor(str(folder))
    _check_model(base, own, fitted)
    return own


def _check_model(base: Predictor, own: Predictor, fitted: FittedHead) -> None:
    """Check that the written model computes what the head does.

    Raises:
        ModelError: it does not.
    """
    size = own.artifact.plan.crop_size
    pixels = np.random.default_rng(0).standard_normal((2, 3, *size), np.float32)
    _, features = base.engine.compute(pixels)
    expected = fitted.head.logits(features)
    difference = float(np.abs(own.engine.logits(pixels) - expected).max())
    if not difference <= _MAX_DIFFERENCE * max(1.0, float(np.abs(expected).max())):
        raise ModelError(f"the written model differs from its head by {difference:.2g}", "please report this")


def _judge(
    own: Predictor,
    origin: dict[str, Any],
    fitted: FittedHead,
    limits: "Limits",
    pictures: Sequence[AssignedPicture],
    classes: tuple[str, ...],
) -> TrainingReport:
    """Return the figures and the rows of the pictures to judge by."""
    indices = {name: index for index, name in enumerate(classes)}
    figures: dict[str, Any] = {}
    judged: list[JudgedPicture] = []
    for split in (Split.VAL, Split.TEST):
        chosen = [picture for picture in pictures if picture.split is split]
        figures[split.value] = None
        if chosen:
            features = np.stack([picture.known_views.features[0] for picture in chosen])
            logits, distances = fitted.head.logits(features), limits.familiarity.distances(features)
            targets = np.array([indices[picture.label] for picture in chosen], np.intp)
            answers = judge(logits, targets)
            figures[split.value] = compute_figures(answers, len(classes)) | {
                "per_class": [asdict(row) for row in list_class_figures(answers, classes)],
                "confusions": list_confusions(answers, classes),
            }
            rows = [
                JudgedPicture(_make_result(own, picture, row, distance), picture.label, split.value)
                for picture, row, distance in zip(chosen, logits, distances.tolist(), strict=True)
            ]
            figures[split.value]["abstention"] = _judge_abstention(rows, indices)
            judged += rows
    learned = np.array([indices[picture.label] for picture in pictures if picture.split is Split.TRAIN], np.intp)
    seen = np.isfinite(fitted.out_of_fold).all(1)
    figures["out_of_fold"] = None
    if seen.any():
        figures["out_of_fold"] = compute_figures(judge(fitted.out_of_fold[seen], learned[seen]), len(classes))
    counts = Counter(picture.split for picture in pictures)
    metrics = {
        "model": own.artifact.variant,
        **origin,
        "classes": len(classes),
        "pictures": {split.value: counts[split] for split in Split} | {"left_out": counts[None]},
        "head": {
            "method": fitted.method.value,
            "strengths": {method.value: strength for method, strength in fitted.strengths.items()},
            "temperature": fitted.temperature,
            "tried": [
                {"method": method.value, "strength": strength, "log_loss": loss if math.isfinite(loss) else None}
                for method, strength, loss in fitted.losses
            ],
        },
        **figures,
    }
    split_rows = [_make_split_row(picture) for picture in pictures]
    learned_counts = np.bincount(learned, minlength=len(classes)).tolist()
    return TrainingReport(metrics, dict(zip(classes, learned_counts, strict=True)), split_rows, judged)


def _judge_abstention(rows: Sequence[JudgedPicture], indices: dict[str, int]) -> dict[str, Any]:
    """Return how many answers are given, and how many of them are wrong."""
    given = [row for row in rows if row.result.abstained is None]
    wrong = sum(row.result.predictions[0].class_index != indices[row.truth] for row in given)
    return {
        "unsure": sum(row.result.abstained is Abstention.UNSURE for row in rows),
        "unfamiliar": sum(row.result.abstained is Abstention.UNFAMILIAR for row in rows),
        "answered": len(given),
        "error_of_answers": wrong / len(given) if given else None,
    }


def _make_split_row(picture: AssignedPicture) -> SplitRow:
    source, split = picture.labelled.source, picture.split
    return SplitRow(source.input, picture.label, split.value if split else "left_out", picture.fold, picture.note)


def _make_result(
    own: Predictor, picture: AssignedPicture, logits: NDArray[np.float32], distance: float
) -> PictureResult:
    source, views = picture.labelled.source, picture.known_views
    predictions, concept = own.rank(logits)
    return PictureResult(
        input=source.input,
        input_b64=source.input_b64,
        member=source.member,
        width=views.width,
        height=views.height,
        predictions=predictions,
        error=None,
        run=own.run_info,
        concept=concept,
        abstained=own.judge(predictions[0].prob, distance),
    )
