"""Linear discriminant analysis, for classes with few pictures."""

import numpy as np

from mfcli.models.regression import Features, Floats, Targets

NO_VARIANCE = 1e-8
"""Of a variance or its square root: as good as 0."""


class Discriminant:
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
        scale = max(float(np.trace(self._covariance)) / len(self._covariance), NO_VARIANCE)
        covariance = (1 - shrinkage) * self._covariance
        covariance[np.diag_indices_from(covariance)] += max(shrinkage, NO_VARIANCE) * scale
        weights = np.linalg.solve(covariance, self._means.T)
        return np.vstack([weights, self._log_priors - 0.5 * (self._means.T * weights).sum(0)])
