"""The head of the user's own classes: a linear layer on features, chosen and calibrated by cross-validation.

Multinomial logistic regression over a path of strengths, and linear discriminant analysis over a grid of shrinkages,
which is nearest mean at shrinkage 1, are judged in the same folds by their log loss. The mean of the best of each kind
is taken, which is a linear layer as well. It is fitted to all pictures, and divided by the temperature that suits its
logits in the folds. benchmarks/own_classes_variants.py compared this with either kind alone, with the better one, and
with the simplest within a standard error, on pictures that no published figure is of; see `models.abstention`.

scikit-learn is not needed: at the log loss of its LogisticRegressionCV this is many times as fast, which
benchmarks/own_classes.py measures, because the features are rotated to uncorrelated ones, in which the curvature of the
loss is nearly diagonal and L-BFGS needs a few steps.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from mfcli.errors import UsageError
from mfcli.settings import usable_cores

Floats = NDArray[np.float64]
Features = NDArray[np.float32]
Targets = NDArray[np.intp]

STRENGTHS = tuple(float(strength) for strength in np.logspace(-4, 4, 9))
"""The inverse of the penalty on the weights, as scikit-learn's C."""
SHRINKAGES = (1.0, 0.6, 0.3, 0.1, 0.02)
"""Of the covariance within the classes towards a multiple of the identity; the first where nothing can be judged."""
_PATIENCE, _CLEARLY_WORSE = 2, 1.01
"""Strengths in a row that make the loss worse before the path ends, and the factor for which one is enough."""
_MAX_PRODUCTS = 2e11
"""Pictures x features x classes up to which the regression is tried: half an hour on two cores."""
_CHUNK = 2**24
"""Logits that are held at once."""


_TOLERANCE, _FINAL_TOLERANCE = 1e-3, 1e-7
"""Of the loss, in the folds and of the final fit."""
_MAX_STEPS, _MEMORY = 300, 10
_SUFFICIENT, _MIN_LENGTH = 1e-4, 1e-6
"""Of a line search: the share of the expected gain that is enough, and the shortest step."""
_MIN_SPREAD, _NO_VARIANCE = 1e-9, 1e-8
_MIN_TEMPERATURE, _MAX_TEMPERATURE, _TEMPERATURE_TOLERANCE = 0.01, 1000.0, 1e-4
_UNKNOWN = 1.0
"""Pictures that could be of any class, among those by which the temperature is fitted."""


class Method(StrEnum):
    """How a head is fitted."""

    REGRESSION = "logistic_regression"
    DISCRIMINANT = "linear_discriminant"
    MEAN = "mean_of_both"


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
        strengths: the strength of the regression and the shrinkage of the discriminant that were chosen.
        temperature: what the logits were divided by.
        losses: what was tried, its strength, and its log loss in the folds after a temperature.
        out_of_fold: logits of each training picture from the model that was not fitted to it, over the temperature,
            float64 (N, classes); NaN for a picture that is in no fold.
    """

    head: Head
    method: Method
    strengths: dict[Method, float]
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
    """

    features: Features
    fitted: Features
    targets: Targets
    folds: NDArray[np.intp]
    weights: Floats

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
    kinds = [list(_try_discriminants(data))]
    is_feasible = data.has_folds and data.fitted.size * data.num_classes <= _MAX_PRODUCTS
    if is_feasible and (regressions := _try_regressions(data, is_over)):
        kinds.append(regressions)
    parts = [min(kind, key=lambda candidate: candidate.loss) for kind in kinds]
    tried = [candidate for kind in kinds for candidate in kind]
    final = parts[0]
    weights = np.mean([_fit_all(data, part) / part.temperature for part in parts], axis=0)
    if len(parts) > 1:
        final = _take_mean(data, parts)
        weights /= final.temperature
        tried.append(final)
    return FittedHead(
        head=scaling.unfold(weights),
        method=final.method,
        strengths={part.method: part.strength for part in parts if part.strength is not None},
        temperature=final.temperature,
        losses=[(candidate.method, candidate.strength, candidate.loss) for candidate in tried],
        out_of_fold=final.logits / final.temperature,
    )


def _take_mean(data: TrainingSet, parts: "list[_Candidate]") -> "_Candidate":
    logits = np.mean([part.logits / part.temperature for part in parts], axis=0)
    return _Candidate(data, Method.MEAN, None, logits)


def _fit_all(data: TrainingSet, best: "_Candidate") -> Floats:
    assert best.strength is not None
    if best.method is Method.DISCRIMINANT:
        return _Discriminant(data.fitted, data.targets, data.weights, data.num_classes).fit(best.strength)
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
        self._std = np.where(std > _NO_VARIANCE, std, 1.0)
        scaled = ((features - self._mean) / self._std).astype(np.float32)
        variances, axes = np.linalg.eigh((scaled.T @ scaled).astype(np.float64) / len(scaled))
        self._axes = axes[:, variances > _NO_VARIANCE * variances[-1]]

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
        logits: of each picture, from the fold in which it was judged.
        weights: where the fit to all pictures begins.
    """

    def __init__(
        self,
        data: TrainingSet,
        method: Method,
        strength: float | None,
        logits: Floats,
        weights: Floats | None = None,
    ) -> None:
        self.method, self.strength, self.logits, self.weights = method, strength, logits, weights
        targets, picture_weights = data.targets[data.seen], data.weights[data.seen]
        self.temperature = fit_temperature(logits[data.seen], targets, picture_weights)
        self.loss = math.inf
        if len(targets):
            self.loss = log_loss(logits[data.seen] / self.temperature, targets, picture_weights)


def _list_folds(data: TrainingSet) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return, for each fold, the pictures to fit to and those to judge by."""
    numbers = range(int(data.folds.max()) + 1)
    return [(np.flatnonzero(data.folds != number), np.flatnonzero(data.folds == number)) for number in numbers]


def _try_discriminants(data: TrainingSet) -> Iterator[_Candidate]:
    folds = [
        (judged, _Discriminant(data.fitted[fitted], data.targets[fitted], data.weights[fitted], data.num_classes))
        for fitted, judged in _list_folds(data)
    ]
    for shrinkage in SHRINKAGES:
        logits = np.full((len(data.targets), data.num_classes), np.nan)
        for judged, discriminant in folds:
            logits[judged] = data.features[judged] @ discriminant.fit(shrinkage)
        yield _Candidate(data, Method.DISCRIMINANT, shrinkage, logits)


class _Discriminant:
    """Linear discriminant analysis, with the weights of the classes as their probabilities; each has a picture."""

    def __init__(self, features: Features, targets: Targets, weights: Floats, num_classes: int) -> None:
        self._log_priors = np.log(np.bincount(targets, weights, num_classes))
        order = np.argsort(targets, kind="stable")
        x, counts = features[order, :-1], np.bincount(targets, minlength=num_classes)
        self._means = np.add.reduceat(x, np.cumsum(counts) - counts, 0, dtype=np.float64) / counts[:, np.newaxis]
        residuals = x - self._means.astype(np.float32)[targets[order]]
        self._covariance = (residuals.T @ residuals).astype(np.float64) / max(1, len(x) - num_classes)

    def fit(self, shrinkage: float) -> Floats:
        """Return the weights, (dim, classes).

        Args:
            shrinkage: 0 for the covariance within the classes, 1 for a multiple of the identity, which is nearest mean.
        """
        scale = max(float(np.trace(self._covariance)) / len(self._covariance), _NO_VARIANCE)
        covariance = (1 - shrinkage) * self._covariance
        covariance[np.diag_indices_from(covariance)] += max(shrinkage, _NO_VARIANCE) * scale
        weights = np.linalg.solve(covariance, self._means.T)
        return np.vstack([weights, self._log_priors - 0.5 * (self._means.T * weights).sum(0)])


def _try_regressions(data: TrainingSet, is_over: Callable[[], bool]) -> list[_Candidate]:
    """Follow the path of strengths from the strongest penalty on, each fold from its previous weights."""
    folds = _list_folds(data)
    problems = [
        Regression(data.fitted[fitted], data.targets[fitted], data.weights[fitted], data.num_classes)
        for fitted, _ in folds
    ]
    weights = [problem.start() for problem in problems]
    candidates: list[_Candidate] = []
    with ThreadPoolExecutor(min(usable_cores(), len(folds) or 1)) as pool:
        for strength in STRENGTHS:
            if is_over() or _has_passed_best(candidates):
                break
            weights = list(pool.map(lambda p, w: p.fit(strength, w, _TOLERANCE), problems, weights))  # noqa: B023
            logits = np.full((len(data.targets), data.num_classes), np.nan)
            for (_, judged), fold_weights in zip(folds, weights, strict=True):
                logits[judged] = data.features[judged] @ fold_weights
            candidates.append(_Candidate(data, Method.REGRESSION, strength, logits, np.mean(weights, axis=0)))
    return candidates


def _has_passed_best(candidates: list[_Candidate]) -> bool:
    losses = [candidate.loss for candidate in candidates]
    best = min(losses, default=0.0)
    return bool(losses) and (losses[-1] > _CLEARLY_WORSE * best or best < min(losses[-_PATIENCE:]))


class Regression:
    """Multinomial logistic regression: the mean log loss plus the squares of the weights over 2 * strength * N.

    L-BFGS, whose first approximation of the curvature is diagonal: that of the features, which are uncorrelated, times
    the mean of p * (1 - p), plus the penalty.
    """

    def __init__(self, features: Features, targets: Targets, weights: Floats, num_classes: int) -> None:
        self._features, self._targets, self._num_classes = features, targets, num_classes
        self._weights = (weights / weights.sum()).astype(np.float32)
        self._curvature = np.einsum("nd,nd,n->d", features, features, self._weights).astype(np.float64)

    def start(self) -> Floats:
        """Return weights of 0, float64 (dim, classes)."""
        return np.zeros((self._features.shape[1], self._num_classes))

    def fit(self, strength: float, weights: Floats, tolerance: float) -> Floats:
        """Return the weights that minimise the loss.

        Args:
            strength: the inverse of the penalty.
            weights: where to begin, float64 (dim, classes).
            tolerance: of the loss that a step is expected to gain.
        """
        penalty = np.full((len(weights), 1), 1 / (strength * len(self._features)))
        penalty[-1] = 0  # the bias
        loss, gradient, spread = self._evaluate(weights, penalty)
        steps: list[tuple[Floats, Floats]] = []
        for _ in range(_MAX_STEPS):
            scale = spread * self._curvature[:, np.newaxis] + penalty
            direction = -_multiply_inverse_curvature(gradient, steps, scale)
            slope = float((gradient * direction).sum())
            if -slope <= tolerance * max(loss, tolerance):
                break
            length = 1.0
            while True:
                moved = weights + length * direction
                new_loss, new_gradient, spread = self._evaluate(moved, penalty)
                if new_loss <= loss + _SUFFICIENT * length * slope or length < _MIN_LENGTH:
                    break
                length /= 2
            step, change = moved - weights, new_gradient - gradient
            if (step * change).sum() > 0:
                steps = [*steps[1 - _MEMORY :], (step, change)]
            weights, loss, gradient = moved, new_loss, new_gradient
        return weights

    def _evaluate(self, weights: Floats, penalty: Floats) -> tuple[float, Floats, float]:
        """Return the loss, its gradient, and the mean of p * (1 - p)."""
        loss, spread = 0.5 * float((penalty * weights * weights).sum()), 0.0
        gradient = penalty * weights
        narrow = weights.astype(np.float32)
        size = max(1, _CHUNK // self._num_classes)
        for start in range(0, len(self._features), size):
            features, targets = self._features[start : start + size], self._targets[start : start + size]
            picture_weights = self._weights[start : start + size]
            rows = np.arange(len(targets))
            probs = features @ narrow
            probs -= probs.max(1, keepdims=True)
            own = probs[rows, targets]
            np.exp(probs, out=probs)
            sums = probs.sum(1)
            loss += float((np.log(sums) - own) @ picture_weights)
            probs /= sums[:, np.newaxis]
            spread += float(((1 - np.einsum("nc,nc->n", probs, probs)) * picture_weights).sum()) / self._num_classes
            probs[rows, targets] -= 1
            probs *= picture_weights[:, np.newaxis]
            gradient += features.T @ probs
        return loss, gradient, max(spread, _MIN_SPREAD)


def _multiply_inverse_curvature(gradient: Floats, steps: list[tuple[Floats, Floats]], scale: Floats) -> Floats:
    """Return L-BFGS's product of the inverse Hessian and the gradient.

    Args:
        gradient: float64 (dim, classes).
        steps: the latest steps, and the changes of the gradient.
        scale: the diagonal of the first approximation of the Hessian, (dim, 1).
    """
    result, factors = gradient.copy(), []
    for step, change in reversed(steps):
        factors.append(float((step * result).sum() / (step * change).sum()))
        result -= factors[-1] * change
    result /= scale
    for step, change in steps:
        result += (factors.pop() - float((change * result).sum() / (step * change).sum())) * step
    return result


def compute_losses(logits: Floats, targets: Targets) -> Floats:
    """Return -log(probability of the right class) of each picture, (N,)."""
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(targets)), targets])


def log_loss(logits: Floats, targets: Targets, weights: Floats) -> float:
    """Return the weighted mean of the losses."""
    return float(compute_losses(logits, targets) @ weights / weights.sum())


def fit_temperature(logits: Floats, targets: Targets, weights: Floats) -> float:
    """Return the divisor of the logits that minimises the log loss, by golden-section search; 1 without pictures.

    One more picture, of which nothing is known, keeps a few pictures that are all right from meaning certainty.
    """
    count = len(targets)
    if not count:
        return 1.0
    shifted = (logits - logits.max(1, keepdims=True)).astype(np.float32)
    wanted = (count * shifted[np.arange(count), targets] + _UNKNOWN * shifted.mean(1)) / (count + _UNKNOWN)
    shares = weights / weights.sum()

    def loss(log: float) -> float:
        return float((np.log(np.exp(shifted / np.float32(np.exp(log))).sum(1)) - wanted / np.exp(log)) @ shares)

    low, high = np.log(_MIN_TEMPERATURE), np.log(_MAX_TEMPERATURE)
    ratio = (np.sqrt(5) - 1) / 2
    points = [high - ratio * (high - low), low + ratio * (high - low)]
    losses = [loss(point) for point in points]
    while high - low > _TEMPERATURE_TOLERANCE:
        if losses[0] < losses[1]:
            high, points[1], losses[1] = points[1], points[0], losses[0]
            points[0] = high - ratio * (high - low)
            losses[0] = loss(points[0])
        else:
            low, points[0], losses[0] = points[0], points[1], losses[1]
            points[1] = low + ratio * (high - low)
            losses[1] = loss(points[1])
    return float(np.exp((low + high) / 2))
