"""How good a trained model is: its figures, and its answers for the pictures to judge by.

These pictures decide nothing: neither the head, nor its strength, nor its temperature depends on them.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfcli.inference.predictor import Predictor
from mfcli.inputs.dataset import Split
from mfcli.models.head import FittedHead
from mfcli.models.metrics import Answers, compute_figures, judge, list_class_figures, list_confusions
from mfcli.outputs.training import JudgedPicture, SplitRow, TrainingReport
from mfcli.results import Abstention, PictureResult
from mfcli.training.assignment import AssignedPicture, index_labels
from mfcli.training.candidates import Candidate, Kind, judge_held_out


def make_report(
    own: Predictor, data: str, kept: Candidate, candidates: Sequence[Candidate], classes: tuple[str, ...]
) -> TrainingReport:
    """Return the figures and the rows of the pictures to judge by.

    Args:
        own: the model as it was written.
        data: what it was trained on.
        kept: the candidate that it is.
        candidates: all of them: the probe, and the fine-tuned one if there is one.
        classes: in head order.
    """
    figures: dict[str, Any] = {}
    judged: list[JudgedPicture] = []
    for split in (Split.VAL, Split.TEST):
        figures[split.value] = None
        if (answers := _judge_split(kept, split, classes)) is not None:
            rows = _list_judged(own, kept, split)
            figures[split.value] = compute_figures(answers, len(classes)) | {
                "per_class": [asdict(row) for row in list_class_figures(answers, classes)],
                "confusions": list_confusions(answers, classes),
                "abstention": _judge_abstention(rows, classes),
            }
            judged += rows
    learned = index_labels([picture for picture in kept.pictures if picture.split is Split.TRAIN], classes)
    seen = np.isfinite(kept.fitted.out_of_fold).all(1)
    answers = judge(kept.fitted.out_of_fold[seen], learned[seen])
    is_probe = kept.kind is Kind.PROBE
    figures["out_of_fold"] = compute_figures(answers, len(classes)) if is_probe and seen.any() else None
    figures["held_out"] = None if is_probe else compute_figures(answers, len(classes))
    figures["finetune"] = _compare(kept, candidates, classes) if len(candidates) > 1 else None
    counts = Counter(picture.split for picture in kept.pictures)
    metrics = {
        "model": own.artifact.variant,
        "base": kept.base,
        "data": data,
        "classes": len(classes),
        "pictures": {split.value: counts[split] for split in Split} | {"left_out": counts[None]},
        "head": _describe_head(kept.fitted),
        **figures,
    }
    split_rows = [_make_split_row(picture) for picture in kept.pictures]
    learned_counts = np.bincount(learned, minlength=len(classes)).tolist()
    return TrainingReport(metrics, dict(zip(classes, learned_counts, strict=True)), split_rows, judged)


def _judge_split(candidate: Candidate, split: Split, classes: tuple[str, ...]) -> Answers | None:
    """Return the answers for the pictures of a split; None without any."""
    chosen = [own for own in candidate.pictures if own.split is split]
    if not chosen:
        return None
    features = np.stack([own.known_views.features[0] for own in chosen])
    return judge(candidate.fitted.head.logits(features), index_labels(chosen, classes))


def _compare(kept: Candidate, candidates: Sequence[Candidate], classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the figures of all candidates, side by side."""

    def measure(answers: Answers | None) -> dict[str, float] | None:
        return None if answers is None else compute_figures(answers, len(classes))

    return {
        "kept": kept.kind.value,
        "best_epoch": max(own.best_epoch for own in candidates),
        "epochs": [figures for own in candidates for figures in own.epochs],
        **{
            own.kind.value: {
                split.value: measure(_judge_split(own, split, classes)) for split in (Split.VAL, Split.TEST)
            }
            | {"held_out": measure(judge_held_out(own, classes))}
            for own in candidates
        },
    }


def _describe_head(fitted: FittedHead) -> dict[str, Any]:
    return {
        "method": fitted.method.value,
        "strength": fitted.strength,
        "temperature": fitted.temperature,
        "tried": [
            {"method": method.value, "strength": strength, "log_loss": loss if math.isfinite(loss) else None}
            for method, strength, loss in fitted.losses
        ],
    }


def _list_judged(own: Predictor, kept: Candidate, split: Split) -> list[JudgedPicture]:
    """Return the rows of the pictures of a split, of which there are some."""
    chosen = [picture for picture in kept.pictures if picture.split is split]
    features = np.stack([picture.known_views.features[0] for picture in chosen])
    logits, distances = kept.fitted.head.logits(features), kept.limits.familiarity.distances(features)
    return [
        JudgedPicture(_make_result(own, picture, row, distance), picture.label, split.value)
        for picture, row, distance in zip(chosen, logits, distances.tolist(), strict=True)
    ]


def _judge_abstention(rows: Sequence[JudgedPicture], classes: tuple[str, ...]) -> dict[str, Any]:
    """Return how many answers are given, and how many of them are wrong."""
    given = [row for row in rows if row.result.abstained is None]
    wrong = sum(classes[row.result.predictions[0].class_index] != row.truth for row in given)
    return {
        "unsure": sum(row.result.abstained is Abstention.UNSURE for row in rows),
        "unfamiliar": sum(row.result.abstained is Abstention.UNFAMILIAR for row in rows),
        "answered": len(given),
        "error_of_answers": wrong / len(given) if given else None,
    }


def _make_split_row(picture: AssignedPicture) -> SplitRow:
    source, split = picture.labelled.source, picture.split
    return SplitRow(source.input, picture.label, split.value if split else "left_out", picture.fold, picture.note)


def _make_result(
    own: Predictor, picture: AssignedPicture, logits: NDArray[np.float32], distance: float
) -> PictureResult:
    source, views = picture.labelled.source, picture.known_views
    predictions, concept = own.rank(logits)
    return PictureResult(
        input=source.input,
        input_b64=source.input_b64,
        member=source.member,
        width=views.width,
        height=views.height,
        predictions=predictions,
        error=None,
        run=own.run_info,
        concept=concept,
        abstained=own.judge(predictions[0].prob, distance),
    )
