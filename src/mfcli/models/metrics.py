"""How good a classifier is: figures of probabilities and classes, with their uncertainty."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Probs = NDArray[np.float64]
Targets = NDArray[np.intp]

_Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
_BINS = 15
_COVERAGES = (0.5, 0.8, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """The figures of one class; None where nothing is to be divided.

    Attributes:
        name: the class.
        count: its pictures.
        correct: those of them that are right.
        precision: the share of right ones among what was given this class.
        recall: the share of right ones among its pictures.
        f1: the harmonic mean of both.
    """

    name: str
    count: int
    correct: int
    precision: float | None
    recall: float | None
    f1: float | None


def softmax(logits: NDArray[Any]) -> Probs:
    """Return probabilities, float64 (N, classes)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))


def compute_figures(probs: Probs, targets: Targets) -> dict[str, Any]:
    """Return the figures of a set of pictures.

    Args:
        probs: float64 (N, classes), N at least 1.
        targets: the right classes, (N,).
    """
    ranks = rank_targets(probs, targets)
    correct, in_top5 = int((ranks == 0).sum()), int((ranks < 5).sum())
    recalls = [
        float((ranks[targets == index] == 0).mean()) for index in range(probs.shape[1]) if (targets == index).any()
    ]
    own = probs[np.arange(len(targets)), targets]
    return {
        "pictures": len(targets),
        "top1": correct / len(targets),
        "top1_interval": wilson_interval(correct, len(targets)),
        "top5": in_top5 / len(targets) if probs.shape[1] > 5 else None,
        "top5_interval": wilson_interval(in_top5, len(targets)) if probs.shape[1] > 5 else None,
        "log_loss": -float(np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean()) + 0.0,  # never -0
        "brier": float((np.square(probs).sum(1) - 2 * own + 1).mean()),
        "calibration_error": compute_calibration_error(probs, targets),
        "macro_recall": sum(recalls) / len(recalls),
        "risk_at_coverage": compute_risks(probs, targets),
    }


def rank_targets(probs: Probs, targets: Targets) -> NDArray[np.intp]:
    """Return the rank of the right class, 0 for the most probable; equal probabilities rank in head order."""
    own = probs[np.arange(len(targets)), targets][:, np.newaxis]
    earlier = np.arange(probs.shape[1]) < targets[:, np.newaxis]
    return np.asarray(((probs > own) | ((probs == own) & earlier)).sum(1))


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share, after Wilson (1927)."""
    share, square = successes / count, _Z * _Z
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count * count)) / (1 + square / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def compute_calibration_error(probs: Probs, targets: Targets) -> float:
    """Return the expected calibration error over 15 equal bins of the largest probability (Guo et al., 2017)."""
    confidence, is_right = probs.max(1), probs.argmax(1) == targets
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, is_right, _BINS) - np.bincount(bins, confidence, _BINS)
    return float(np.abs(gaps).sum() / len(targets))


def compute_risks(probs: Probs, targets: Targets) -> dict[str, float]:
    """Return the share of wrong answers among the most confident 50 %, 80 %, 90 % and all of the pictures."""
    order = np.argsort(-probs.max(1), kind="stable")
    is_wrong = (probs.argmax(1) != targets)[order]
    counts = {coverage: max(1, round(coverage * len(targets))) for coverage in _COVERAGES}
    return {f"{coverage:.0%}": float(is_wrong[:count].mean()) for coverage, count in counts.items()}


def list_class_figures(predicted: Targets, targets: Targets, names: tuple[str, ...]) -> list[ClassFigures]:
    """Return the figures of each class, in head order.

    Args:
        predicted: the given classes, (N,).
        targets: the right classes, (N,).
        names: of the classes.
    """
    size = len(names)
    counts, given = np.bincount(targets, minlength=size).tolist(), np.bincount(predicted, minlength=size).tolist()
    correct = np.bincount(targets[predicted == targets], minlength=size).tolist()
    return [
        ClassFigures(
            name,
            count,
            right,
            right / answers if answers else None,
            right / count if count else None,
            2 * right / (count + answers) if count + answers else None,
        )
        for name, count, answers, right in zip(names, counts, given, correct, strict=True)
    ]


def list_confusions(predicted: Targets, targets: Targets, names: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """Return the most frequent confusions first: right class, given class, number of pictures.

    Args:
        predicted: the given classes, (N,).
        targets: the right classes, (N,).
        names: of the classes.
    """
    wrong = predicted != targets
    codes, counts = np.unique(targets[wrong] * len(names) + predicted[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    pairs = [(divmod(int(codes[at]), len(names)), int(counts[at])) for at in order]
    return [(names[row], names[column], count) for (row, column), count in pairs]
