"""When a model should say "I don't know": thresholds that mf train leaves in the artifact.

A picture is unsure if its probability is below the one above which few answers were wrong, and unfamiliar if its
features are farther from every class than those of nearly all pictures that were learned. Both are taken from pictures
in the folds in which they were judged. The distance is Mahalanobis's, with the covariance within the classes shrunk.

benchmarks/own_classes_variants.py chose the constants, on pictures that no published figure is of: cats and dogs, and
the training pictures of hymenoptera and Imagenette, judged by other pictures of the same, by classes that were left
out, by one another and by generated pictures.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mfcli.models.head import TrainingSet

Floats = NDArray[np.float64]

FAMILIAR_SHARE = 0.95
"""Of the pictures learned from are familiar."""
_SHRINKAGE = 0.1
"""The mean AUROC was 0.864 with 0.02 and 0.1, 0.861 with 0.3; of the largest probability 0.807, of neighbours 0.844."""
_LOG_RISK = math.log(1000)
"""One in 1,000 that the error is above its bound: the largest of 0.05, 0.01, 0.001 and 0.0001 with which at most 5 % of
200 divisions, four parts to learn from and one to judge by, had more errors than allowed (3 %; 5.5 % with 0.01). Chance
explains it: the bound from n answers must leave room for their noise and that of n / 4 others, which takes 0.0012."""
_MAX_POINTS = 200
_BISECTIONS = 40
_MIN_STD = 1e-8


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What an artifact knows of its own limits.

    Attributes:
        errors: probabilities, falling, each with the bound on the error of the answers that are at least as sure.
        distance: the largest one of familiar pictures; None if there are too few pictures to know.
    """

    errors: tuple[tuple[float, float], ...]
    distance: float | None

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Thresholds":
        """Read what `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError: it did not.
        """
        errors = tuple((float(prob), float(bound)) for prob, bound in fields["errors"])
        return cls(errors, None if fields["distance"] is None else float(fields["distance"]))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"errors": [list(point) for point in self.errors], "distance": self.distance}

    def find_prob(self, max_error: float) -> float:
        """Return the least probability whose answers keep their error under a limit; above 1 where none does."""
        return min((prob for prob, bound in self.errors if bound <= max_error), default=math.inf)

    @property
    def least_error(self) -> float:
        """The least limit that any answers keep; 1 if there are none."""
        return min((bound for _, bound in self.errors), default=1.0)


def bound_error(wrong: int, count: int) -> float:
    """Return an upper bound of the share of wrong answers, after Chernoff and Hoeffding (1963)."""
    share, low, high = wrong / count, wrong / count, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        divergence = share * math.log(share / middle) if share else 0.0
        if share < 1:
            divergence += (1 - share) * math.log((1 - share) / (1 - middle)) if middle < 1 else math.inf
        low, high = (middle, high) if divergence < _LOG_RISK / count else (low, middle)
    return high


def list_error_bounds(probs: Floats, is_right: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """Return probabilities, falling, each with the bound on the error of the answers that are at least as sure.

    Those after which a lower bound follows are left out: nobody needs them.

    Args:
        probs: the largest probability of each picture, (N,).
        is_right: whether its class is right, (N,).
    """
    order = np.argsort(-probs, kind="stable")
    wrong = np.cumsum(~is_right[order])
    counts = sorted(set(np.linspace(1, len(order), _MAX_POINTS).astype(int).tolist())) if len(order) else []
    points: list[tuple[float, float]] = []
    for count in reversed(counts):
        bound = bound_error(int(wrong[count - 1]), count)
        if not points or bound < points[-1][1]:
            points.append((float(probs[order[count - 1]]), bound))
    return tuple(reversed(points))


@dataclass(frozen=True, slots=True)
class Familiarity:
    """How far features are from the classes: the least squared distance of features @ axes + offset to a centre.

    Attributes:
        axes: float32 (dim, dim).
        offset: float32 (dim,).
        centres: of the classes, float32 (classes, dim).
    """

    axes: NDArray[np.float32]
    offset: NDArray[np.float32]
    centres: NDArray[np.float32]

    @classmethod
    def fit(cls, features: NDArray[np.float32], targets: NDArray[np.intp], num_classes: int) -> "Familiarity":
        """Fit it to pictures; a class without any has no centre.

        Args:
            features: float32 (N, dim).
            targets: class of each picture, (N,).
            num_classes: the number of classes.
        """
        mean, std = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
        std = np.where(std > _MIN_STD, std, 1.0)
        scaled = ((features - mean) / std).astype(np.float32)  # halves the time of the products
        present = np.flatnonzero(np.bincount(targets, minlength=num_classes))
        centres = np.stack([scaled[targets == index].mean(0) for index in present])
        residuals = scaled - centres[np.searchsorted(present, targets)]
        covariance = (residuals.T @ residuals).astype(np.float64) / len(scaled)
        dim = len(covariance)
        scale = max(float(np.trace(covariance)) / dim, _MIN_STD)
        shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * scale * np.eye(dim)
        whitening = np.linalg.cholesky(np.linalg.inv(shrunk))
        axes = whitening / std[:, np.newaxis]
        return cls(*(array.astype(np.float32) for array in (axes, -mean @ axes, centres @ whitening)))

    def distances(self, features: NDArray[np.float32]) -> Floats:
        """Return the distance of each picture, (N,)."""
        moved = features.astype(np.float64) @ self.axes + self.offset
        squares = -2 * moved @ self.centres.T + np.square(self.centres, dtype=np.float64).sum(1)
        return np.asarray(squares.min(1) + np.square(moved).sum(1))


def fit_familiarity(data: "TrainingSet") -> tuple[Familiarity, float | None]:
    """Return how familiar pictures are, and the largest distance of familiar ones, judged in the folds."""
    distances = np.full(len(data.targets), np.nan)
    for number in range(int(data.folds.max()) + 1):
        fitted, judged = data.folds != number, data.folds == number
        familiarity = Familiarity.fit(data.features[fitted], data.targets[fitted], data.num_classes)
        distances[judged] = familiarity.distances(data.features[judged])
    known = distances[np.isfinite(distances)]
    limit = float(np.quantile(known, FAMILIAR_SHARE)) if len(known) else None
    return Familiarity.fit(data.features, data.targets, data.num_classes), limit
