"""How good a classifier is: figures of its answers, with their uncertainty.

Of each answer a few numbers are kept, so that the figures of a million pictures with 21,841 classes fit into memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Targets = NDArray[np.intp]

_Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
_BINS = 15
_COVERAGES = (0.5, 0.8, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """The figures of one class; None where the divisor would be 0.

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


class Answer(NamedTuple):
    """What the figures need of the answer for one picture.

    Attributes:
        target: the right class.
        predicted: the given class, the most probable one.
        rank: of the right class, 0 for the most probable; where it is unknown, how many are known not to be it.
        confidence: the largest probability.
        log_loss: minus the logarithm of the right class's probability; NaN if unknown.
        brier: the sum over all classes of the squared difference from the truth, 0 to 2; NaN if unknown.
    """

    target: int
    predicted: int
    rank: int
    confidence: float
    log_loss: float
    brier: float

    @property
    def is_right(self) -> bool:
        """Whether the given class is the right one."""
        return self.rank == 0


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers for N pictures; see `Answer`.

    Attributes:
        targets: (N,).
        predicted: (N,).
        ranks: (N,).
        confidence: float64 (N,).
        log_losses: float64 (N,).
        briers: float64 (N,).
    """

    targets: Targets
    predicted: Targets
    ranks: Targets
    confidence: Floats
    log_losses: Floats
    briers: Floats

    @classmethod
    def collect(cls, answers: Sequence[Answer]) -> "Answers":
        """Return the answers as arrays; at least one."""
        targets, predicted, ranks, *others = zip(*answers, strict=True)
        confidence, log_losses, briers = (np.array(column, np.float64) for column in others)
        return cls(
            np.array(targets, np.intp),
            np.array(predicted, np.intp),
            np.array(ranks, np.intp),
            confidence,
            log_losses,
            briers,
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Answer:
        return Answer(
            int(self.targets[index]),
            int(self.predicted[index]),
            int(self.ranks[index]),
            float(self.confidence[index]),
            float(self.log_losses[index]),
            float(self.briers[index]),
        )

    @property
    def are_right(self) -> NDArray[np.bool_]:
        """Whether the given class is the right one, (N,)."""
        return np.equal(self.ranks, 0)


def judge(logits: NDArray[Any], targets: Targets) -> Answers:
    """Return what the figures need of answers; equal logits rank in head order.

    Args:
        logits: (N, classes), -inf for classes that are not to be given.
        targets: the right classes, (N,).
    """
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    own = log_probs[np.arange(len(targets)), targets]
    are_earlier = np.arange(logits.shape[1]) < targets[:, np.newaxis]
    above = (log_probs > own[:, np.newaxis]) | ((log_probs == own[:, np.newaxis]) & are_earlier)
    probs = np.exp(log_probs)
    return Answers(
        targets,
        logits.argmax(1),
        above.sum(1),
        probs.max(1),
        0.0 - own,  # never -0
        np.square(probs).sum(1) - 2 * np.exp(own) + 1,
    )


def compute_figures(answers: Answers, num_classes: int, known: int | None = None) -> dict[str, Any]:
    """Return the figures of a set of pictures; shares are 0 to 1, and what is not known is None.

    Args:
        answers: of at least one picture.
        num_classes: that can be given.
        known: how many of the most probable classes are known of each answer; None for all.
    """
    count = len(answers)
    correct, in_top5 = int(answers.are_right.sum()), int((answers.ranks < 5).sum())
    has_top5 = num_classes > 5 and (known is None or known >= 5)
    counts = np.bincount(answers.targets)
    recalls = np.bincount(answers.targets, answers.are_right)[counts > 0] / counts[counts > 0]
    return {
        "pictures": count,
        "top1": correct / count,
        "top1_interval": wilson_interval(correct, count),
        "top5": in_top5 / count if has_top5 else None,
        "top5_interval": wilson_interval(in_top5, count) if has_top5 else None,
        "log_loss": _mean(answers.log_losses),
        "brier": _mean(answers.briers),
        "calibration_error": compute_calibration_error(answers),
        "macro_recall": float(recalls.mean()),
        "risk_at_coverage": compute_risks(answers),
        "aurc": compute_aurc(answers),
    }


def _mean(values: Floats) -> float | None:
    mean = math.fsum(values) / len(values)  # whatever their order
    return None if math.isnan(mean) else mean


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share, after Wilson (1927)."""
    share, square = successes / count, _Z * _Z
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count * count)) / (1 + square / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def list_bins(answers: Answers) -> list[tuple[int, float, float]]:
    """Return pictures, mean confidence and share of right answers of 15 equal bins of the confidence, if not empty."""
    bins = np.minimum((answers.confidence * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    sums = (np.bincount(bins, values, _BINS) for values in (answers.confidence, answers.are_right))
    return [
        (count, prob / count, right / count)
        for count, prob, right in zip(counts.tolist(), *(values.tolist() for values in sums), strict=True)
        if count
    ]


def compute_calibration_error(answers: Answers) -> float:
    """Return the expected calibration error over 15 equal bins of the largest probability (Guo et al., 2017)."""
    return sum(count * abs(right - prob) for count, prob, right in list_bins(answers)) / len(answers)


def compute_risks(answers: Answers) -> dict[str, float]:
    """Return the share of wrong answers among the most confident 50 %, 80 %, 90 % and all of the pictures."""
    wrong = _order_wrong(answers)
    counts = {coverage: max(1, round(coverage * len(answers))) for coverage in _COVERAGES}
    return {f"{coverage:.0%}": float(wrong[:count].mean()) for coverage, count in counts.items()}


def compute_aurc(answers: Answers) -> float:
    """Return the area under the curve of risk against coverage: the mean of the risks at all coverages."""
    return float((np.cumsum(_order_wrong(answers)) / np.arange(1, len(answers) + 1)).mean())


def _order_wrong(answers: Answers) -> Floats:
    """Return which answers are wrong, the most confident first; equally confident ones share what is wrong of them."""
    _, places, counts = np.unique(-answers.confidence, return_inverse=True, return_counts=True)
    return np.repeat(np.bincount(places, ~answers.are_right) / counts, counts)


def list_class_figures(answers: Answers, names: Sequence[str]) -> list[ClassFigures]:
    """Return the figures of each class, in head order.

    Args:
        answers: of the pictures.
        names: of the classes.
    """
    size = len(names)
    counts = np.bincount(answers.targets, minlength=size).tolist()
    given = np.bincount(answers.predicted, minlength=size).tolist()
    correct = np.bincount(answers.targets[answers.are_right], minlength=size).tolist()
    return [
        ClassFigures(
            name,
            count,
            right,
            right / times if times else None,
            right / count if count else None,
            2 * right / (count + times) if count + times else None,
        )
        for name, count, times, right in zip(names, counts, given, correct, strict=True)
    ]


def list_confusions(answers: Answers, names: Sequence[str]) -> list[tuple[str, str, int]]:
    """Return the most frequent confusions first: right class, given class, number of pictures.

    Args:
        answers: of the pictures.
        names: of the classes.
    """
    codes = answers.targets * len(names) + answers.predicted
    codes, counts = np.unique(codes[~answers.are_right], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    pairs = [(divmod(int(codes[at]), len(names)), int(counts[at])) for at in order]
    return [(names[row], names[column], count) for (row, column), count in pairs]
