"""Log loss, and the temperature that makes logits as sure as they are right (Guo et al., 2017)."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Targets = NDArray[np.intp]

_MIN_TEMPERATURE, _MAX_TEMPERATURE, _TEMPERATURE_TOLERANCE = 0.01, 1000.0, 1e-4
_UNKNOWN = 1.0
"""Pictures that could be of any class, among those by which the temperature is fitted."""


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
