"""The figures of a training as files: for programs (JSON, CSV, JSON Lines), and a model card for people."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfcli.results import PictureResult
from mfcli.version import __version__

METRICS_FILE = "metrics.json"
_SHOWN = 5
"""Confusions and classes in the model card."""


@dataclass(frozen=True, slots=True)
class SplitRow:
    """What a picture was used for: a row of split.csv.

    Attributes:
        path: the file.
        label: the name of its class.
        split: train, val, test or left_out.
        fold: in which it was judged while the head was chosen; -1 for none.
        note: why it is left out, or what else there is to know.
    """

    path: str
    label: str
    split: str
    fold: int
    note: str


@dataclass(frozen=True, slots=True)
class JudgedPicture:
    """A picture to judge by.

    Attributes:
        result: the model's answer.
        truth: the name of its class.
        split: val or test.
    """

    result: PictureResult
    truth: str
    split: str


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """Everything that is known of a training.

    Attributes:
        metrics: JSON values; `val` and `test` are None without such pictures.
        learned: number of pictures learned from, by class, in head order.
        rows: a row for each picture.
        judged: the answers for the pictures to judge by.
    """

    metrics: dict[str, Any]
    learned: Mapping[str, int]
    rows: Sequence[SplitRow]
    judged: Sequence[JudgedPicture]


def write_report(folder: Path, report: TrainingReport) -> None:
    """Write metrics.json, results.csv, confusion.csv and .png, split.csv, predictions.jsonl and card.md.

    Raises:
        OSError: one cannot be written.
    """
    (folder / METRICS_FILE).write_text(json.dumps(report.metrics, indent=1, ensure_ascii=False), encoding="utf-8")
    _write_csv(
        folder / "split.csv",
        ["path", "label", "split", "fold", "note"],
        [[row.path, row.label, row.split, row.fold if row.fold >= 0 else "", row.note] for row in report.rows],
    )
    _write_results(folder / "results.csv", report)
    with (folder / "predictions.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for own in report.judged:
            row = own.result.to_dict() | {"truth": own.truth, "split": own.split}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    if report.metrics["val"]:
        _write_confusions(folder, report)
    (folder / "card.md").write_text(_format_card(report), encoding="utf-8")


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _write_results(path: Path, report: TrainingReport) -> None:
    columns = ("count", "correct", "precision", "recall", "f1")
    splits = [split for split in ("val", "test") if report.metrics[split]]
    rows: dict[str, list[object]] = {name: [name, count] for name, count in report.learned.items()}
    for split in splits:
        for figures in report.metrics[split]["per_class"]:
            rows[figures["name"]] += [figures[column] for column in columns]
    header = ["label", "train_count", *(f"{split}_{column}" for split in splits for column in columns)]
    _write_csv(path, header, list(rows.values()))


def _write_confusions(folder: Path, report: TrainingReport) -> None:
    from mfcli.outputs.confusion import Confusions

    figures = report.metrics["val"]
    correct = {row["name"]: row["correct"] for row in figures["per_class"]}
    confusions = Confusions(correct, figures["confusions"])
    with (folder / "confusion.csv").open("w", encoding="utf-8", errors="replace", newline="") as file:
        confusions.write_csv(file)
    if confusions.is_matrix:
        confusions.draw().save(folder / "confusion.png")


def _format_card(report: TrainingReport) -> str:
    """Return the model card."""
    metrics, names = report.metrics, list(report.learned)
    counts = metrics["pictures"]
    base = metrics["base"]
    lines = [
        f"# {metrics['model']}",
        "",
        f"A classifier of {len(names)} classes, trained with mfcli {__version__} on the features of {base}:",
        "`mf predict PICTURE --model DIR`, where DIR is this folder.",
        "",
        "## Trained on",
        "",
        f"{counts['train']} pictures from `{metrics['data']}`; {counts['val'] + counts['test']} others to judge by, "
        f"{counts['left_out']} left out. `split.csv` lists them.",
        "",
        "| class | pictures |",
        "|---|---|",
        *(f"| {_escape(name)} | {count} |" for name, count in report.learned.items()),
        "",
        "## How good it is",
        "",
        *_format_figures(metrics),
        "",
        "## What it must not be used for",
        "",
        "- It answers with one of its classes whatever is in a picture; it was not trained to know anything else.",
        "- The figures hold for pictures like those it was judged by: same source, light and quality.",
        "- It must not decide about people, or where an error causes harm, without a person who checks its answers.",
        "- The base model's own licence and limits apply.",
        "",
    ]
    return "\n".join(lines)


def _format_figures(metrics: Mapping[str, Any]) -> list[str]:
    kinds = {
        "val": "pictures set aside",
        "test": "test pictures",
        "out_of_fold": "pictures learned from, in five folds",
    }
    lines = [
        "| judged by | pictures | top-1 | 95 % interval | log loss | calibration error |",
        "|---|---|---|---|---|---|",
    ]
    for kind, words in kinds.items():
        if figures := metrics[kind]:
            low, high = figures["top1_interval"]
            lines.append(
                f"| {words} | {figures['pictures']} | {figures['top1']:.1%} | {low:.1%} to {high:.1%} "
                f"| {figures['log_loss']:.3f} | {figures['calibration_error']:.3f} |"
            )
    if (figures := metrics["val"]) and figures["confusions"]:
        lines += ["", "Most frequent confusions: "]
        lines += [
            f"- {count} of {_escape(truth)} were called {_escape(predicted)}"
            for truth, predicted, count in figures["confusions"][:_SHOWN]
        ]
    return lines


def _escape(name: str) -> str:
    return name.replace("|", "\\|")
