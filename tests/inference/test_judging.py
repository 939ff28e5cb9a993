"""Figures of judgements: the comparison with what is published, and classes that share a name."""

import numpy as np
import pytest

from mfcli.inference.judging import Judgement, Truth, summarize
from mfcli.models.class_names import ClassMapping, Naming
from mfcli.models.metrics import judge
from mfcli.results import Label

CRANES = (Label("n02012849", "crane"), Label("n03126707", "crane"))


def judge_all(targets: list[int]) -> list[Judgement]:
    answers = judge(np.eye(2)[[0] * len(targets)], np.array(targets))
    return [Judgement(answers[index]) for index in range(len(targets))]


@pytest.mark.parametrize(("targets", "difference"), [([0, 0, 0, 1], pytest.approx(-0.05)), ([0, 0], None)])
def test_the_published_figure_is_compared_if_all_classes_have_pictures(
    targets: list[int], difference: float | None
) -> None:
    truth = Truth(CRANES, ClassMapping(Naming.INDEX, {"0": 0, "1": 1}, ()))
    figures = summarize({}, judge_all(targets), truth, published_top1=0.8).figures
    assert (figures["published_top1"], figures["published_difference"]) == (0.8, difference)


def test_classes_that_share_a_name_are_told_apart() -> None:
    evaluation = summarize({}, judge_all([0, 1]), Truth(CRANES, ClassMapping(Naming.INDEX, {"0": 0, "1": 1}, ())))
    assert [row["name"] for row in evaluation.per_class] == ["crane (n02012849)", "crane (n03126707)"]
    assert evaluation.confusions == [("crane (n03126707)", "crane (n02012849)", 1)]
