"""Thresholds of abstention: errors that stay under their bound, and distances that tell what is unlike."""

import math

import numpy as np
import pytest

from mfcli.models.abstention import Familiarity, Thresholds, bound_error, fit_familiarity, list_error_bounds
from mfcli.models.head import TrainingSet


@pytest.mark.parametrize(("wrong", "count"), [(0, 1), (0, 100), (5, 100), (100, 100), (500, 10_000)])
def test_the_bound_lies_above_the_share_and_falls_with_the_count(wrong: int, count: int) -> None:
    bound = bound_error(wrong, count)
    assert wrong / count <= bound <= 1
    assert bound_error(10 * wrong, 10 * count) <= bound


def test_the_bound_without_errors_by_hand() -> None:
    assert bound_error(0, 100) == pytest.approx(1 - 1000 ** (-1 / 100))


def test_answers_above_the_threshold_keep_the_error() -> None:
    random = np.random.default_rng(0)
    probs = random.uniform(0.3, 1, 6000)
    is_right = random.uniform(0, 1, 6000) < probs
    thresholds = Thresholds(list_error_bounds(probs[:3000], is_right[:3000]), None)
    previous = 0.0
    for max_error in (0.3, 0.2, 0.1):
        prob = thresholds.find_prob(max_error)
        kept = probs[3000:] >= prob
        assert (~is_right[3000:])[kept].mean() < max_error
        assert kept.mean() > 0.05
        assert prob > previous
        previous = prob
    assert thresholds.find_prob(1e-6) == math.inf
    bounds = [bound for _, bound in thresholds.errors]
    assert bounds == sorted(set(bounds))
    assert Thresholds((), None).find_prob(0.1) == math.inf


def test_thresholds_are_read_back() -> None:
    thresholds = Thresholds(((0.9, 0.05), (0.5, 0.2)), 12.5)
    assert Thresholds.from_json(thresholds.to_json()) == thresholds


def test_unlike_pictures_are_far_and_like_ones_are_near() -> None:
    random = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], 100)
    centres = random.normal(0, 3, (3, 20))
    features = (centres[targets] + random.normal(0, 1, (300, 20))).astype(np.float32)
    data = TrainingSet(features, features, targets, np.arange(300) % 5, np.full(300, 1 / 300))
    familiarity, limit = fit_familiarity(data)
    assert limit is not None
    new = (centres[targets] + random.normal(0, 1, (300, 20))).astype(np.float32)
    unlike = random.normal(0, 4, (300, 20)).astype(np.float32)
    assert (familiarity.distances(new) > limit).mean() < 0.12
    assert (familiarity.distances(unlike) > limit).mean() > 0.9


def test_a_class_of_one_picture_and_constant_features() -> None:
    features = np.random.default_rng(0).normal(0, 1, (5, 4)).astype(np.float32)
    features[:, 3] = 1
    distances = Familiarity.fit(features, np.array([0, 0, 0, 0, 1]), 2).distances(features)
    assert np.isfinite(distances).all()
    assert (distances >= -1e-3).all()
