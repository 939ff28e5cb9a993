"""Figures, against scikit-learn where it has them and by hand."""

import numpy as np
import pytest

from mfcli.models.metrics import compute_figures, list_class_figures, list_confusions, rank_targets, wilson_interval

PROBS = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.3, 0.3, 0.4], [0.1, 0.8, 0.1]])
TARGETS = np.array([0, 0, 2, 1])


def test_figures_by_hand() -> None:
    figures = compute_figures(PROBS, TARGETS)
    assert (figures["pictures"], figures["top1"], figures["top5"]) == (4, 0.75, None)
    assert figures["log_loss"] == pytest.approx(-np.log([0.7, 0.4, 0.4, 0.8]).mean())
    assert figures["brier"] == pytest.approx((0.14 + 0.62 + 0.54 + 0.06) / 4)
    assert figures["calibration_error"] == pytest.approx((0.3 + 0.5 + 0.6 + 0.2) / 4)
    assert figures["macro_recall"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert figures["risk_at_coverage"] == {"50%": 0, "80%": pytest.approx(1 / 3), "90%": 0.25, "100%": 0.25}


def test_figures_against_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    probs, targets = random.dirichlet(np.ones(8), 300), random.integers(0, 8, 300)
    figures, predicted = compute_figures(probs, targets), probs.argmax(1)
    assert figures["top5"] == pytest.approx(metrics.top_k_accuracy_score(targets, probs, k=5))
    assert figures["log_loss"] == pytest.approx(metrics.log_loss(targets, probs))
    assert figures["macro_recall"] == pytest.approx(metrics.balanced_accuracy_score(targets, predicted))
    expected = metrics.precision_recall_fscore_support(targets, predicted)
    rows = list_class_figures(predicted, targets, tuple("abcdefgh"))
    assert [(row.precision, row.recall, row.f1, row.count) for row in rows] == [
        pytest.approx(values) for values in zip(*expected, strict=True)
    ]


def test_confusions_most_frequent_first() -> None:
    predicted, targets = np.array([1, 1, 2, 0, 1]), np.array([0, 0, 1, 0, 1])
    assert list_confusions(predicted, targets, ("a", "b", "c")) == [("a", "b", 2), ("b", "c", 1)]


def test_equal_probabilities_rank_in_head_order() -> None:
    assert rank_targets(np.full((3, 3), 1 / 3), np.array([0, 1, 2])).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"), [(0, 10, 0.0, 0.2775), (8, 10, 0.4902, 0.9433), (10, 10, 0.7225, 1.0)]
)
def test_wilson_intervals(successes: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(successes, count) == pytest.approx((low, high), abs=1e-4)
