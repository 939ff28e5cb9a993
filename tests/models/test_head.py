"""The head: the optimum of its loss, the choice in folds, and calibrated probabilities."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from mfcli.errors import UsageError
from mfcli.models.calibration import fit_temperature, log_loss
from mfcli.models.head import Method, TrainingSet, fit_head
from mfcli.models.regression import Regression

Floats = NDArray[np.float32]


def make_set(per_class: int, classes: int = 4, dim: int = 24, noise: float = 2.0, seed: int = 0) -> TrainingSet:
    random = np.random.default_rng(seed)
    means = np.random.default_rng(1).normal(0, 1, (classes, dim))
    targets = np.repeat(np.arange(classes), per_class)
    features = (means[targets] + random.normal(0, noise, (len(targets), dim))).astype(np.float32)
    folds = np.arange(len(targets)) % 5
    return TrainingSet(features, features, targets, folds, np.full(len(targets), 1 / len(targets)))


def loss_of(logits: NDArray[np.floating], targets: NDArray[np.intp]) -> float:
    return log_loss(logits.astype(np.float64), targets, np.ones(len(targets)))


def test_the_head_is_as_good_as_scikit_learns() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, test = make_set(60), make_set(400, seed=9)
    fitted = fit_head(train)
    scale = train.features.mean(0), train.features.std(0)
    reference = linear_model.LogisticRegressionCV(Cs=17, cv=5, scoring="neg_log_loss", max_iter=1000)
    reference.fit((train.features - scale[0]) / scale[1], train.targets)
    expected = loss_of(reference.decision_function((test.features - scale[0]) / scale[1]), test.targets)
    assert loss_of(fitted.head.logits(test.features), test.targets) <= expected + 0.01


def test_the_regression_finds_scikit_learns_optimum() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    train = make_set(30)
    features = np.hstack([train.features, np.ones((120, 1), np.float32)])
    regression = Regression(features, train.targets, train.weights, 4)
    weights = regression.fit(0.3, regression.start(), 1e-9)
    reference = linear_model.LogisticRegression(C=0.3, tol=1e-8, max_iter=10_000).fit(train.features, train.targets)
    assert np.allclose(weights[:-1].T, reference.coef_, atol=1e-3)
    assert np.allclose(weights[-1] - weights[-1].mean(), reference.intercept_ - reference.intercept_.mean(), atol=5e-3)


@pytest.mark.parametrize(
    ("per_class", "competing"), [(4, {Method.REGRESSION, Method.DISCRIMINANT}), (5, {Method.REGRESSION})]
)
def test_discriminants_compete_where_a_class_has_few_pictures(per_class: int, competing: set[Method]) -> None:
    fitted = fit_head(make_set(per_class))
    assert {method for method, _, _ in fitted.losses} == competing
    assert (fitted.method, fitted.strength) == min(fitted.losses, key=lambda tried: tried[2])[:2]


@pytest.mark.parametrize("per_class", [2, 3])
def test_few_pictures_a_class_are_learned(per_class: int) -> None:
    train, test = make_set(per_class, classes=8, dim=64, noise=1.5), make_set(50, classes=8, dim=64, noise=1.5, seed=9)
    fitted = fit_head(train)
    assert (fitted.head.logits(test.features).argmax(1) == test.targets).mean() > 0.6


def test_one_picture_a_class_in_no_fold_is_nearest_mean() -> None:
    train = make_set(1)
    train = TrainingSet(train.features, train.fitted, train.targets, np.full(4, -1), train.weights)
    fitted = fit_head(train)
    assert (fitted.method, fitted.strength) == (Method.DISCRIMINANT, 1.0)
    assert fitted.head.logits(train.features).argmax(1).tolist() == [0, 1, 2, 3]


def test_the_same_pictures_give_the_same_bits() -> None:
    first, second = fit_head(make_set(20)), fit_head(make_set(20))
    assert np.array_equal(first.head.weight, second.head.weight)
    assert np.array_equal(first.head.bias, second.head.bias)


def test_other_divisions_judge_as_well() -> None:
    train = make_set(12)
    once = fit_head(train)
    twice = fit_head(replace(train, other_folds=(train.folds,)))
    assert [loss for *_, loss in twice.losses] == pytest.approx([loss for *_, loss in once.losses])
    assert twice.out_of_fold == pytest.approx(once.out_of_fold)
    other = fit_head(replace(train, other_folds=(np.random.default_rng(0).permutation(train.folds),)))
    assert [loss for *_, loss in other.losses] != pytest.approx([loss for *_, loss in once.losses])
    assert other.out_of_fold.shape == once.out_of_fold.shape


def test_constant_features_and_few_directions() -> None:
    train = make_set(10)
    features = np.hstack([train.features, np.ones((40, 200), np.float32), np.zeros((40, 3), np.float32)])
    fitted = fit_head(TrainingSet(features, features, train.targets, train.folds, train.weights))
    assert np.isfinite(fitted.head.weight).all()
    assert (fitted.head.logits(features).argmax(1) == train.targets).mean() > 0.8


def test_balanced_weights_help_the_rare_class() -> None:
    train, test = make_set(200, classes=2, noise=4), make_set(500, classes=2, noise=4, seed=9)
    keep = np.r_[np.arange(200), 200 + np.arange(20)]
    rare = TrainingSet(train.features[keep], train.fitted[keep], train.targets[keep], train.folds[keep], np.ones(220))
    recalls = []
    for weights in (rare.weights, 1 / np.bincount(rare.targets)[rare.targets]):
        fitted = fit_head(TrainingSet(rare.features, rare.fitted, rare.targets, rare.folds, weights / weights.sum()))
        predicted = fitted.head.logits(test.features).argmax(1)
        recalls.append((predicted[test.targets == 1] == 1).mean())
    assert recalls[1] > recalls[0] + 0.2


def test_the_time_limit_leaves_the_discriminants() -> None:
    assert fit_head(make_set(20), is_over=lambda: True).method is Method.DISCRIMINANT


def test_features_that_are_not_finite() -> None:
    train = make_set(5)
    train.features[3, 2] = np.nan
    with pytest.raises(UsageError, match="NaN"):
        fit_head(train)


def test_the_temperature_of_logits_that_are_too_sure() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (5000, 3))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = np.array([random.choice(3, p=row) for row in probs])
    assert fit_temperature(logits * 4, targets, np.ones(5000)) == pytest.approx(4, rel=0.05)


def test_a_few_pictures_that_are_all_right_do_not_mean_certainty() -> None:
    targets = np.arange(10) % 2
    logits = 20.0 * np.eye(2)[targets]
    temperature = fit_temperature(logits, targets, np.ones(10))
    assert loss_of(logits / temperature, targets) == pytest.approx(-np.log(10.5 / 11), rel=1e-3)
    many = np.arange(10_000) % 2
    assert loss_of(20 * np.eye(2)[many] / fit_temperature(20 * np.eye(2)[many], many, np.ones(10_000)), many) < 1e-3
