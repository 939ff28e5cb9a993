"""The solver of multinomial logistic regression.

scikit-learn is not needed: at the log loss of its LogisticRegressionCV this is many times as fast, which
benchmarks/own_classes.py measures, because the features are rotated to uncorrelated ones, in which the curvature of the
loss is nearly diagonal and L-BFGS needs a few steps.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Features = NDArray[np.float32]
Targets = NDArray[np.intp]

_CHUNK = 2**24
"""Logits that are held at once."""
_MAX_STEPS, _MEMORY = 300, 10
_SUFFICIENT, _MIN_LENGTH = 1e-4, 1e-6
"""Of a line search: the share of the expected gain that is enough, and the shortest step."""
_MIN_SPREAD = 1e-9


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
