"""Judges the answers for pictures whose classes are known, one at a time, computed now or in an earlier run."""

import contextlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfcli.errors import UsageError
from mfcli.inference.predictor import Predictor
from mfcli.models.class_names import ClassMapping
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
from mfcli.results import Concept, Label, PictureResult
from mfcli.runs import Summary

TOP = 5
"""Classes of which one has to be right for top-5."""
_CONFUSIONS = 10
"""Pairs of classes in the figures."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known of a dataset and a head.

    Attributes:
        labels: the head's, in its order.
        mapping: from the dataset's names of classes to the head's.
        allowed: which classes can be given, (classes,); None for all.
        real: the right classes of some pictures by name, where several may be right (Beyer et al., 2020).
    """

    labels: Sequence[Label]
    mapping: ClassMapping
    allowed: NDArray[np.bool_] | None = None
    real: Mapping[str, Collection[int]] | None = None

    @property
    def num_classes(self) -> int:
        """How many classes can be given."""
        return len(self.labels) if self.allowed is None else int(self.allowed.sum())

    def find(self, name: str) -> int | None:
        """Return the class that a name of the dataset means; None if it cannot be given."""
        index = self.mapping.indices.get(name)
        return None if index is None or (self.allowed is not None and not self.allowed[index]) else index


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is kept of one picture.

    Attributes:
        answer: None if the picture failed.
        known: how many of the most probable classes are known; None for all.
        in_real: whether the given class, and one of the first five, is among the picture's several right ones; None if
            it has none of these.
        concept_holds: whether the named concept is the truth or above it; None if none is named.
        has_abstained: whether the answer is marked as not to be trusted.
    """

    answer: Answer | None
    known: int | None = None
    in_real: tuple[bool, bool] | None = None
    concept_holds: bool | None = None
    has_abstained: bool = False


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good the answers are.

    Attributes:
        figures: JSON values by name; shares are 0 to 1, and what is not known is None.
        per_class: a record for each class that has pictures, in head order.
        confusions: right class, given class and number of pictures, the most frequent first.
        summary: the counts of pictures.
    """

    figures: dict[str, Any]
    per_class: list[dict[str, Any]]
    confusions: list[tuple[str, str, int]]
    summary: Summary


FAILED = Judgement(None)


def judge_result(
    result: PictureResult, target: int, truth: Truth, predictor: Predictor
) -> tuple[PictureResult, Judgement]:
    """Return a result, whose predictions are among the classes that can be given, and its judgement.

    Args:
        result: with logits, or failed.
        target: the right class.
        truth: of the dataset.
        predictor: ranks.

    Raises:
        UsageError: the result has no logits.
    """
    if result.error is not None:
        return result, FAILED
    logits = result.logits
    if logits is None:
        raise UsageError("the predictor does not give logits", "load_predictor(..., logits=True)")
    if truth.allowed is not None:
        logits = np.where(truth.allowed, logits, np.float32(-np.inf))
        predictions, concept = predictor.rank(logits)
        result = replace(result, predictions=predictions[: truth.num_classes], concept=concept, abstained=None)
    answer = judge(logits[np.newaxis], np.array([target]))[0]
    return result, _complete(result, answer, None, truth)


def judge_row(result: PictureResult, target: int, truth: Truth, judged: object = None) -> Judgement:
    """Return the judgement of a result of an earlier run, which may not have all classes.

    Args:
        result: with predictions, or failed.
        target: the right class.
        truth: of the dataset.
        judged: what `describe` returned for it then; None if it was not judged.
    """
    if result.error is not None:
        return FAILED
    predictions = result.predictions
    if isinstance(judged, dict) and judged.get("class_index") == target:
        with contextlib.suppress(KeyError, TypeError, ValueError):  # else it is not what `describe` returned
            rank, log_loss, brier = int(judged["rank"]), float(judged["log_loss"]), float(judged["brier"])
            answer = Answer(target, predictions[0].class_index, rank, predictions[0].prob, log_loss, brier)
            return _complete(result, answer, None, truth)
    place = next((place for place, p in enumerate(predictions) if p.class_index == target), None)
    log_loss = -math.log(max(predictions[place].prob, 5e-324)) if place is not None else math.nan
    brier, known = math.nan, len(predictions)
    if len(predictions) == len(truth.labels):
        brier = sum((p.prob - (p.class_index == target)) ** 2 for p in predictions)
    rank = known if place is None else place
    answer = Answer(target, predictions[0].class_index, rank, predictions[0].prob, log_loss, brier)
    return _complete(result, answer, known, truth)


def describe(judgement: Judgement) -> dict[str, Any] | None:
    """Return what a row says of its judgement; None if the picture failed."""
    answer = judgement.answer
    if answer is None:
        return None
    return {
        "class_index": answer.target,
        "rank": answer.rank,
        "log_loss": answer.log_loss,
        "brier": answer.brier,
    }


def _complete(result: PictureResult, answer: Answer, known: int | None, truth: Truth) -> Judgement:
    top = result.predictions[0]
    answer = answer._replace(predicted=top.class_index, confidence=top.prob)
    in_real = None
    if truth.real is not None and (right := truth.real.get(result.shown_name)):
        hits = [p.class_index in right for p in result.predictions[:TOP]]
        in_real = (hits[0], any(hits))
    holds = None if result.concept is None else _holds(result.concept, truth.labels[answer.target].wnid)
    return Judgement(answer, known, in_real, holds, result.abstained is not None)


def _holds(concept: Concept, wnid: str | None) -> bool:
    return wnid is not None and concept.wnid in _list_above(wnid)


@cache
def _list_above(wnid: str) -> frozenset[str | None]:
    from mfcli.models.concepts import ancestors

    return frozenset({wnid, *(label.wnid for label in ancestors(wnid))})


def summarize(
    figures: dict[str, Any],
    judgements: Sequence[Judgement],
    truth: Truth,
    published_top1: float | None = None,
    images_per_s: float | None = None,
) -> Evaluation:
    """Return how good the answers are.

    Args:
        figures: what else is known.
        judgements: of all pictures.
        truth: of the dataset.
        published_top1: of the model and all its classes, 0 to 1; it is compared if all have pictures.
        images_per_s: how fast it was.
    """
    rows = [judgement.answer for judgement in judgements if judgement.answer is not None]
    failed = len(judgements) - len(rows)
    summary = Summary(len(judgements), len(rows), failed, complete=True)
    if not rows:
        return Evaluation(figures | {"pictures": 0, "failed": failed}, [], [], summary)
    answers, names = Answers.collect(rows), _name_uniquely(truth.labels)
    known = min((judgement.known for judgement in judgements if judgement.known is not None), default=None)
    own = compute_figures(answers, truth.num_classes, known)
    per_class = _list_classes(answers, truth, names)
    confusions = list_confusions(answers, names)
    is_comparable = published_top1 is not None and len(per_class) == len(truth.labels)
    figures |= {
        "classes": len(per_class),
        "num_classes": truth.num_classes,
        **own,
        "failed": failed,
        **_count_failures_as_wrong(own, len(judgements)),
        "published_top1": published_top1,
        "published_difference": own["top1"] - (published_top1 or 0.0) if is_comparable else None,
        **_summarize_real(judgements),
        **_summarize_concepts(judgements),
        **_summarize_abstentions(judgements),
        "images_per_s": images_per_s,
        "confusions": [
            dict(zip(("truth", "predicted", "count"), pair, strict=True)) for pair in confusions[:_CONFUSIONS]
        ],
        "bins": [dict(zip(("count", "confidence", "top1"), one, strict=True)) for one in list_bins(answers)],
    }
    return Evaluation(figures, per_class, confusions, summary)


def _count_failures_as_wrong(figures: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return top-1 and top-5 of all pictures, those that failed being wrong."""
    correct = round(figures["top1"] * figures["pictures"])
    top5 = figures["top5"]
    return {
        "strict_top1": correct / count,
        "strict_top1_interval": wilson_interval(correct, count),
        "strict_top5": None if top5 is None else round(top5 * figures["pictures"]) / count,
    }


def _name_uniquely(labels: Sequence[Label]) -> list[str]:
    """Return the names of the classes; those that share one, such as ImageNet's cranes, also have their ids."""
    counts = Counter(label.name for label in labels)
    return [
        label.name if counts[label.name] == 1 else f"{label.name} ({label.wnid or index})"
        for index, label in enumerate(labels)
    ]


def _list_classes(answers: Answers, truth: Truth, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the figures of the classes that have pictures."""
    given: dict[int, list[str]] = {}
    for name, index in truth.mapping.indices.items():
        given.setdefault(index, []).append(name)
    figures = list_class_figures(answers, names)
    return [
        {"class_index": index, "wnid": label.wnid, "named": given[index]} | asdict(row)
        for index, (label, row) in enumerate(zip(truth.labels, figures, strict=True))
        if row.count
    ]


def _summarize_real(judgements: Sequence[Judgement]) -> dict[str, Any]:
    hits = [judgement.in_real for judgement in judgements if judgement.in_real is not None]
    if not hits:
        return {}
    first, top5 = (sum(column) for column in zip(*hits, strict=True))
    return {
        "real_pictures": len(hits),
        "real_top1": first / len(hits),
        "real_top1_interval": wilson_interval(first, len(hits)),
        "real_top5": top5 / len(hits),
    }


def _summarize_concepts(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Return for how many pictures a concept is named, and how many of these show it."""
    named = [judgement.concept_holds for judgement in judgements if judgement.concept_holds is not None]
    ok = sum(judgement.answer is not None for judgement in judgements)
    if not named:
        return {}
    return {"concept_named": len(named) / ok, "concept_holds": sum(named) / len(named)}


def _summarize_abstentions(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Return the share of answers that are marked as not to be trusted, and top-1 of the others."""
    kept = [judgement.answer for judgement in judgements if judgement.answer and not judgement.has_abstained]
    ok = sum(judgement.answer is not None for judgement in judgements)
    if len(kept) == ok:
        return {}
    return {"abstained": 1 - len(kept) / ok, "kept_top1": sum(a.is_right for a in kept) / len(kept) if kept else None}
