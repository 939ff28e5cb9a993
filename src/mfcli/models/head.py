"""The head of the user's own classes: a linear layer on features, chosen and calibrated by cross-validation.

It is multinomial logistic regression on standardised features. The strength is that of the least log loss in folds; the
temperature that suits the logits in the folds is folded into the head. Where a class has fewer pictures than there are
folds, linear discriminant analysis over a grid of shrinkages, which is nearest mean at shrinkage 1, competes in the
same folds; it stands alone where regression would take too long. Of few pictures, the best strength in five folds is
mostly chance, and cheap to find; the folds are then drawn several times. benchmarks/own_classes_variants.py compares
these choices.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mfcli.errors import UsageError
from mfcli.models.calibration import fit_temperature, log_loss
from mfcli.models.discriminant import NO_VARIANCE, Discriminant
from mfcli.models.regression import Features, Floats, Regression, Targets
from mfcli.settings import usable_cores

STRENGTHS = tuple(float(strength) for strength in np.logspace(-4, 4, 9))
"""The inverse of the penalty on the weights, as scikit-learn's C."""
SHRINKAGES = (1.0, 0.6, 0.3, 0.1, 0.02)
"""Of the covariance within the classes towards a multiple of the identity; the first where nothing can be judged."""
FEW = 5
"""Pictures below which a class is reported, and discriminants compete."""
_DIVISIONS, _SMALL = 5, 10_000
"""How often folds are drawn, if pictures x classes are at most so many."""
_PATIENCE, _CLEARLY_WORSE = 2, 1.01
"""Strengths in a row that make the loss worse before the path ends, and the factor for which one is enough."""
_MAX_PRODUCTS = 2e11
"""Pictures x features x classes up to which the regression is tried: half an hour on two cores."""
_TOLERANCE, _FINAL_TOLERANCE = 1e-3, 1e-7
"""Of the loss, in the folds and of the final fit."""


class Method(StrEnum):
    """How a head is fitted."""

    REGRESSION = "logistic_regression"
    DISCRIMINANT = "linear_discriminant"
    FINETUNING = "fine_tuning"


@dataclass(frozen=True, slots=True)
class Head:
    """A linear layer on features: logits = features @ weight.T + bias.

    Attributes:
        weight: float32 (classes, dim).
        bias: float32 (classes,).
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, features: Features) -> NDArray[np.float32]:
        """Return float32 (N, classes) for features (N, dim)."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True, slots=True)
class FittedHead:
    """A head, and how it was chosen.

    Attributes:
        head: the temperature is folded into it.
        method: what it was fitted by.
        strength: of the regression, or the shrinkage of the discriminant; None after a fine-tuning.
        temperature: what the logits were divided by.
        losses: what was tried, its strength, and its log loss in the folds after a temperature.
        out_of_fold: logits of each training picture from the model that was not fitted to it, over the temperature,
            float64 (N, classes); NaN for a picture that is in no fold.
    """

    head: Head
    method: Method
    strength: float | None
    temperature: float
    losses: list[tuple[Method, float | None, float]]
    out_of_fold: Floats


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What a head is fitted to.

    Attributes:
        features: of the pictures as they are, float32 (N, dim).
        fitted: what the head is fitted to, of the same shape: means over views of a picture.
        targets: class of each picture, (N,).
        folds: fold of each picture, (N,); -1 for one that every fold is fitted to.
        weights: of each picture, float64 (N,), adding up to 1.
        other_folds: other divisions, in which a head is judged as well, with -1 for the same pictures.
    """

    features: Features
    fitted: Features
    targets: Targets
    folds: NDArray[np.intp]
    weights: Floats
    other_folds: tuple[NDArray[np.intp], ...] = ()

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return int(self.targets.max()) + 1

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Which pictures are in a fold, (N,)."""
        return self.folds >= 0

    @property
    def has_folds(self) -> bool:
        """Whether anything can be judged."""
        return bool(self.seen.any())


def count_divisions(pictures: int, classes: int) -> int:
    """Return how often folds should be drawn."""
    return _DIVISIONS if pictures * classes <= _SMALL else 1


def fit_head(data: TrainingSet, is_over: Callable[[], bool] = lambda: False) -> FittedHead:
    """Choose, fit and calibrate a head.

    Args:
        data: the training pictures.
        is_over: asked between fits whether the time is over; the best head so far is then taken.

    Raises:
        UsageError: the features are not finite.
    """
    if not (np.isfinite(data.features).all() and np.isfinite(data.fitted).all()):
        raise UsageError("the features have NaN or infinite values", "use another model")
    scaling = _Scaling(data.fitted)
    data = replace(data, features=scaling.apply(data.features), fitted=scaling.apply(data.fitted))
    is_feasible = data.has_folds and data.fitted.size * data.num_classes <= _MAX_PRODUCTS
    candidates = _try_regressions(data, is_over) if is_feasible else []
    if not candidates or np.bincount(data.targets).min() < FEW:
        candidates += _try_discriminants(data)
    best = min(candidates, key=lambda candidate: candidate.loss)
    return FittedHead(
        head=scaling.unfold(_fit_all(data, best) / best.temperature),
        method=best.method,
        strength=best.strength,
        temperature=best.temperature,
        losses=[(candidate.method, candidate.strength, candidate.loss) for candidate in candidates],
        out_of_fold=best.logits[0] / best.temperature,
    )


def _fit_all(data: TrainingSet, best: "_Candidate") -> Floats:
    if best.method is Method.DISCRIMINANT:
        return Discriminant(data.fitted, data.targets, data.weights, data.num_classes).fit(best.strength)
    assert best.weights is not None
    regression = Regression(data.fitted, data.targets, data.weights, data.num_classes)
    return regression.fit(best.strength, best.weights, _FINAL_TOLERANCE)


class _Scaling:
    """Standardises features, rotates them to uncorrelated ones, and appends a constant for the bias.

    Directions without variance, such as those beyond the number of pictures, are left out.
    """

    def __init__(self, features: Features) -> None:
        self._mean = features.mean(0, dtype=np.float64)
        std = features.std(0, dtype=np.float64)
        self._std = np.where(std > NO_VARIANCE, std, 1.0)
        scaled = ((features - self._mean) / self._std).astype(np.float32)
        variances, axes = np.linalg.eigh((scaled.T @ scaled).astype(np.float64) / len(scaled))
        self._axes = axes[:, variances > NO_VARIANCE * variances[-1]]

    def apply(self, features: Features) -> Features:
        rotated = ((features - self._mean) / self._std) @ self._axes
        return np.hstack([rotated, np.ones((len(rotated), 1))]).astype(np.float32)

    def unfold(self, weights: Floats) -> Head:
        """Return weights (rotated dim + 1, classes) as a head on features as they are."""
        scaled = self._axes @ weights[:-1] / self._std[:, np.newaxis]
        return Head(scaled.T.astype(np.float32), (weights[-1] - self._mean @ scaled).astype(np.float32))


class _Candidate:
    """A way to fit a head, judged by its logits in the folds.

    Args:
        data: the training pictures.
        method: the kind.
        strength: of the regression, or the shrinkage.
        logits: of each picture, from the fold in which it was judged, (divisions, N, classes).
        weights: where the fit to all pictures begins.
    """

    def __init__(
        self,
        data: TrainingSet,
        method: Method,
        strength: float,
        logits: Floats,
        weights: Floats | None = None,
    ) -> None:
        self.method, self.strength, self.logits, self.weights = method, strength, logits, weights
        targets, picture_weights = data.targets[data.seen], data.weights[data.seen]
        judged = logits[:, data.seen]
        temperatures = [fit_temperature(own, targets, picture_weights) for own in judged]
        self.temperature = math.exp(math.fsum(map(math.log, temperatures)) / len(temperatures))
        self.loss = math.inf
        if len(targets):
            losses = [log_loss(own / self.temperature, targets, picture_weights) for own in judged]
            self.loss = math.fsum(losses) / len(losses)


class _Fold(NamedTuple):
    """A fold of a division: the pictures to fit to, and those to judge by."""

    division: int
    fitted: NDArray[np.intp]
    judged: NDArray[np.intp]


def _list_folds(data: TrainingSet) -> list[_Fold]:
    return [
        _Fold(division, np.flatnonzero(folds != number), np.flatnonzero(folds == number))
        for division, folds in enumerate((data.folds, *data.other_folds))
        for number in range(int(folds.max()) + 1)
    ]


def _judge(data: TrainingSet, folds: Sequence[_Fold], weights: Sequence[Floats]) -> Floats:
    """Return the logits, (divisions, N, classes), from the weights of each fold, (dim, classes)."""
    logits = np.full((1 + len(data.other_folds), len(data.targets), data.num_classes), np.nan)
    for fold, own in zip(folds, weights, strict=True):
        logits[fold.division, fold.judged] = data.features[fold.judged] @ own
    return logits


def _try_discriminants(data: TrainingSet) -> Iterator[_Candidate]:
    folds = _list_folds(data)
    discriminants = [
        Discriminant(data.fitted[fold.fitted], data.targets[fold.fitted], data.weights[fold.fitted], data.num_classes)
        for fold in folds
    ]
    for shrinkage in SHRINKAGES:
        logits = _judge(data, folds, [discriminant.fit(shrinkage) for discriminant in discriminants])
        yield _Candidate(data, Method.DISCRIMINANT, shrinkage, logits)


def _try_regressions(data: TrainingSet, is_over: Callable[[], bool]) -> list[_Candidate]:
    """Follow the path of strengths from the strongest penalty on, each fold from its previous weights."""
    folds = _list_folds(data)
    problems = [
        Regression(data.fitted[fold.fitted], data.targets[fold.fitted], data.weights[fold.fitted], data.num_classes)
        for fold in folds
    ]
    weights = [problem.start() for problem in problems]
    candidates: list[_Candidate] = []
    with ThreadPoolExecutor(min(usable_cores(), len(folds) or 1)) as pool:
        for strength in STRENGTHS:
            if is_over() or _has_passed_best(candidates):
                break
            weights = list(pool.map(lambda p, w: p.fit(strength, w, _TOLERANCE), problems, weights))  # noqa: B023
            logits = _judge(data, folds, weights)
            candidates.append(_Candidate(data, Method.REGRESSION, strength, logits, np.mean(weights, axis=0)))
    return candidates


def _has_passed_best(candidates: list[_Candidate]) -> bool:
    losses = [candidate.loss for candidate in candidates]
    best = min(losses, default=0.0)
    return bool(losses) and (losses[-1] > _CLEARLY_WORSE * best or best < min(losses[-_PATIENCE:]))
