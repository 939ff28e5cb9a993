"""What each picture of a dataset is used for: to learn from, to judge the model by, or nothing.

Classes are divided by the pictures' content, so that the same pictures fall on the same side wherever they lie.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mfcli.inputs.dataset import NO_PICTURES, Dataset, LabelledPicture, Split, count_names
from mfcli.models.head import FEW, TrainingSet, count_divisions
from mfcli.models.splits import divide, group_duplicates
from mfcli.results import Failure
from mfcli.training.request import ClassWeight
from mfcli.training.views import Views

FOLDS = 5


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


def assign_pictures(dataset: Dataset, views: Sequence[Views | Failure], seed: int) -> list[AssignedPicture]:
    """Decide what each picture is used for.

    Left out are unreadable pictures, and those that occur under two labels. Without pictures to judge by, a fifth
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
    for found, verbs, what in (
        (unreadable, ("cannot be read and is", "cannot be read and are"), "left out"),
        (twice, ("is", "are"), "left out: under two labels, or of a class that cannot be learned"),
        (leaked, ("to judge by is", "to judge by are"), "also in train, which flatters the figures"),
    ):
        if found:
            names = [own.labelled.source.shown_name for own in found]
            notes.append(count_names(names, f"picture {verbs[0]} {what}", f"pictures {verbs[1]} {what}"))
    counts = Counter(own.label for own in pictures if own.split is not None)
    if gone := [name for name in (*dataset.classes, *dataset.empty) if not counts[name]]:
        notes.append(count_names(gone, *NO_PICTURES))
    fewer = f"fewer than {FEW} pictures"
    if few := [name for name, count in sorted(counts.items()) if count < FEW]:
        notes.append(count_names(few, f"class has {fewer}", f"classes have {fewer}"))
    judged = {own.label for own in pictures if own.split is Split.VAL}
    if unjudged := [name for name in sorted(counts) if name not in judged]:
        notes.append(count_names(unjudged, "class has no pictures to judge by", "classes have no pictures to judge by"))
    return notes


def list_classes(pictures: Sequence[AssignedPicture]) -> tuple[str, ...]:
    """Return the classes that can be learned, in head order."""
    return tuple(sorted({picture.label for picture in pictures if picture.split is Split.TRAIN}))


def index_labels(pictures: Sequence[AssignedPicture], classes: tuple[str, ...]) -> NDArray[np.intp]:
    """Return the class of each picture, (N,)."""
    indices = {name: index for index, name in enumerate(classes)}
    return np.array([indices[own.label] for own in pictures], np.intp)


def make_training_set(
    pictures: Sequence[AssignedPicture], classes: tuple[str, ...], class_weight: ClassWeight, seed: int
) -> TrainingSet:
    """Return what the head is fitted to: the means of a picture and its mirror image."""
    learned = [own for own in pictures if own.split is Split.TRAIN]
    features = np.stack([own.known_views.features for own in learned])
    targets = index_labels(learned, classes)
    weights = np.ones(len(learned))
    if class_weight is ClassWeight.BALANCED:
        weights /= np.bincount(targets)[targets]
    folds = np.array([own.fold for own in learned], np.intp)
    digests = [own.known_views.digest for own in learned]
    groups = np.array([own.group for own in learned], np.intp)
    others = tuple(
        np.where(folds < 0, -1, divide(digests, groups, targets, FOLDS, f"folds {seed} {number} "))
        for number in range(1, count_divisions(len(learned), len(classes)))
    )
    return TrainingSet(features[:, 0], features.mean(1), targets, folds, weights / weights.sum(), others)
