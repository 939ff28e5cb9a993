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
from mfcli.models.metrics import compute_figures, judge, list_class_figures, list_confusions
from mfcli.outputs.training import JudgedPicture, SplitRow, TrainingReport
from mfcli.results import Abstention, PictureResult
from mfcli.training.assignment import AssignedPicture
from mfcli.training.model import Limits


def make_report(
    own: Predictor,
    origin: dict[str, Any],
    fitted: FittedHead,
    limits: Limits,
    pictures: Sequence[AssignedPicture],
    classes: tuple[str, ...],
) -> TrainingReport:
    """Return the figures and the rows of the pictures to judge by."""
    indices = {name: index for index, name in enumerate(classes)}
    figures: dict[str, Any] = {}
    judged: list[JudgedPicture] = []
    for split in (Split.VAL, Split.TEST):
        chosen = [picture for picture in pictures if picture.split is split]
        figures[split.value] = None
        if chosen:
            features = np.stack([picture.known_views.features[0] for picture in chosen])
            logits, distances = fitted.head.logits(features), limits.familiarity.distances(features)
            targets = np.array([indices[picture.label] for picture in chosen], np.intp)
            answers = judge(logits, targets)
            figures[split.value] = compute_figures(answers, len(classes)) | {
                "per_class": [asdict(row) for row in list_class_figures(answers, classes)],
                "confusions": list_confusions(answers, classes),
            }
            rows = [
                JudgedPicture(_make_result(own, picture, row, distance), picture.label, split.value)
                for picture, row, distance in zip(chosen, logits, distances.tolist(), strict=True)
            ]
            figures[split.value]["abstention"] = _judge_abstention(rows, indices)
            judged += rows
    learned = np.array([indices[picture.label] for picture in pictures if picture.split is Split.TRAIN], np.intp)
    seen = np.isfinite(fitted.out_of_fold).all(1)
    figures["out_of_fold"] = None
    if seen.any():
        figures["out_of_fold"] = compute_figures(judge(fitted.out_of_fold[seen], learned[seen]), len(classes))
    counts = Counter(picture.split for picture in pictures)
    metrics = {
        "model": own.artifact.variant,
        **origin,
        "classes": len(classes),
        "pictures": {split.value: counts[split] for split in Split} | {"left_out": counts[None]},
        "head": {
            "method": fitted.method.value,
            "strength": fitted.strength,
            "temperature": fitted.temperature,
            "tried": [
                {"method": method.value, "strength": strength, "log_loss": loss if math.isfinite(loss) else None}
                for method, strength, loss in fitted.losses
            ],
        },
        **figures,
    }
    split_rows = [_make_split_row(picture) for picture in pictures]
    learned_counts = np.bincount(learned, minlength=len(classes)).tolist()
    return TrainingReport(metrics, dict(zip(classes, learned_counts, strict=True)), split_rows, judged)


def _judge_abstention(rows: Sequence[JudgedPicture], indices: dict[str, int]) -> dict[str, Any]:
    """Return how many answers are given, and how many of them are wrong."""
    given = [row for row in rows if row.result.abstained is None]
    wrong = sum(row.result.predictions[0].class_index != indices[row.truth] for row in given)
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
