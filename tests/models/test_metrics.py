"""Figures, against scikit-learn where it has them and by hand."""

import numpy as np
import pytest

from mfcli.models.metrics import (
    Answer,
    Answers,
    compute_figures,
    judge,
    list_bins,
    list_class_figures,
    list_confusions,
    wilson_interval,
)

PROBS = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.3, 0.3, 0.4], [0.1, 0.8, 0.1]])
TARGETS = np.array([0, 0, 2, 1])


def test_figures_by_hand() -> None:
    figures = compute_figures(judge(np.log(PROBS), TARGETS), 3)
    assert (figures["pictures"], figures["top1"], figures["top5"]) == (4, 0.75, None)
    assert figures["log_loss"] == pytest.approx(-np.log([0.7, 0.4, 0.4, 0.8]).mean())
    assert figures["brier"] == pytest.approx((0.14 + 0.62 + 0.54 + 0.06) / 4)
    assert figures["calibration_error"] == pytest.approx((0.3 + 0.5 + 0.6 + 0.2) / 4)
    assert figures["macro_recall"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert figures["risk_at_coverage"] == {"50%": 0, "80%": pytest.approx(1 / 3), "90%": 0.25, "100%": 0.25}
    assert figures["aurc"] == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)


def test_figures_against_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    probs, targets = random.dirichlet(np.ones(8), 300), random.integers(0, 8, 300)
    answers = judge(np.log(probs), targets)
    figures, predicted = compute_figures(answers, 8), probs.argmax(1)
    assert figures["top5"] == pytest.approx(metrics.top_k_accuracy_score(targets, probs, k=5))
    assert figures["log_loss"] == pytest.approx(metrics.log_loss(targets, probs))
    assert figures["macro_recall"] == pytest.approx(metrics.balanced_accuracy_score(targets, predicted))
    expected = metrics.precision_recall_fscore_support(targets, predicted)
    rows = list_class_figures(answers, "abcdefgh")
    assert [(row.precision, row.recall, row.f1, row.count) for row in rows] == [
        pytest.approx(values) for values in zip(*expected, strict=True)
    ]


def test_confusions_most_frequent_first() -> None:
    answers = judge(np.eye(3)[[1, 1, 2, 0, 1]], np.array([0, 0, 1, 0, 1]))
    assert list_confusions(answers, "abc") == [("a", "b", 2), ("b", "c", 1)]


def test_the_order_of_equally_confident_answers_does_not_matter() -> None:
    rows = [Answer(0, 0, 0, 0.5, np.nan, np.nan), Answer(0, 1, 1, 0.5, np.nan, np.nan)]
    for answers in (rows, rows[::-1]):
        figures = compute_figures(Answers.collect(answers), 10)
        assert (figures["aurc"], figures["risk_at_coverage"]["50%"]) == (0.5, 0.5)


def test_equal_logits_rank_in_head_order() -> None:
    assert judge(np.zeros((3, 3)), np.array([0, 1, 2])).ranks.tolist() == [0, 1, 2]


def test_classes_that_are_not_to_be_given_count_for_nothing() -> None:
    logits = np.array([[3.0, 1.0, 2.0, 9.0]])
    masked = np.where([True, True, True, False], logits, -np.inf)
    assert judge(masked, np.array([1]))[0] == judge(logits[:, :3], np.array([1]))[0]


def test_the_bins_are_weighted_by_their_counts() -> None:
    rows = [Answer(0, 0 if right else 1, 0 if right else 1, prob, np.nan, np.nan) for prob, right in BINNED]
    answers = Answers.collect(rows)
    assert list_bins(answers) == [(1, 0.1, 0.0), (3, pytest.approx(0.9), 1.0)]
    figures = compute_figures(answers, 10, known=1)
    assert figures["calibration_error"] == pytest.approx(0.1)
    assert (figures["top5"], figures["log_loss"], figures["brier"]) == (None, None, None)


BINNED = ((0.9, True), (0.9, True), (0.9, True), (0.1, False))


def test_a_log_loss_beyond_the_smallest_probability_is_exact() -> None:
    assert judge(np.array([[0.0, -2000.0]]), np.array([1]))[0].log_loss == 2000


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"), [(0, 10, 0.0, 0.2775), (8, 10, 0.4902, 0.9433), (10, 10, 0.7225, 1.0)]
)
def test_wilson_intervals(successes: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(successes, count) == pytest.approx((low, high), abs=1e-4)
