"""The figures of a training as files: for programs (JSON, CSV, JSON Lines), and a model card for people."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfcli.results import PictureResult
from mfcli.version import __version__

METRICS_FILE = "metrics.json"
_SPLIT_FILE = "split.csv"
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
        folder / _SPLIT_FILE,
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


def read_learned(folder: Path) -> set[str]:
    """Return the real paths of the pictures that a model was trained on; none where split.csv cannot be read."""
    try:
        with (folder / _SPLIT_FILE).open(encoding="utf-8", errors="replace", newline="") as file:
            return {os.path.realpath(row["path"]) for row in csv.DictReader(file) if row["split"] == "train"}
    except (OSError, KeyError, csv.Error):
        return set()


def describe_choice(metrics: Mapping[str, Any]) -> list[str]:
    """Return what was chosen after a fine-tuning, and why, a sentence each; nothing after none."""
    if not (tried := metrics["finetune"]):
        return []
    kept, other = (_FINETUNED, _PROBE) if tried["kept"] == _FINETUNED[0] else (_PROBE, _FINETUNED)

    def compare(first: tuple[str, str], second: tuple[str, str], split: str) -> str:
        losses = [tried[kind][split]["log_loss"] for kind, _ in (first, second)]
        return f"{losses[0]:.3f} against {losses[1]:.3f} of {second[1]}"

    sentences = [f"{kept[1]} is kept: log loss {compare(kept, other, 'held_out')} on the pictures held out"]
    if metrics["val"] and tried[other[0]]["val"]["log_loss"] < tried[kept[0]]["val"]["log_loss"]:
        better = compare(other, kept, "val")
        sentences.append(f"on the pictures set aside {other[1]} is better: {better}; they choose nothing")
    return sentences


_PROBE, _FINETUNED = ("probe", "the probe"), ("finetuned", "the fine-tuned model")


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
    tried, what = metrics["finetune"], f"the features of {metrics['base']}"
    if tried and tried["kept"] == _FINETUNED[0]:
        what = f"{metrics['base']}, fine-tuned as a whole"
    lines = [
        f"# {metrics['model']}",
        "",
        f"A classifier of {len(names)} classes, trained with mfcli {__version__} on {what}:",
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
        *_format_finetuning(metrics),
        "## What it must not be used for",
        "",
        "- It answers with one of its classes whatever is in a picture; it was not trained to know anything else.",
        "- Its answers are marked as *unsure*, or as *unfamiliar* where a picture is unlike all that it learned from.",
        "  The marks miss some: pictures of other things can be answered with a high probability and without a mark.",
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
        "held_out": "pictures held out, which chose the epoch and the temperature",
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


def _format_finetuning(metrics: Mapping[str, Any]) -> list[str]:
    if not (tried := metrics["finetune"]):
        return []
    lines = [
        "## Fine-tuning",
        "",
        "A head on the base model's features, the probe, was compared with the whole backbone fine-tuned. A fifth of",
        "the pictures to learn from, fold 0 in `split.csv`, was held out of both and chose between them. It also chose",
        f"the epoch of the fine-tuning, {tried['best_epoch']} of {len(tried['epochs'])}, and its temperature, so that",
        "the figures there are slightly too good. The pictures set aside chose nothing.",
        "",
        "| model | judged by | pictures | top-1 | log loss | calibration error |",
        "|---|---|---|---|---|---|",
    ]
    for kind, name in (_PROBE, _FINETUNED):
        for split, what in (("held_out", "held out"), ("val", "set aside"), ("test", "test")):
            if figures := tried[kind][split]:
                lines.append(
                    f"| {name} | {what} | {figures['pictures']} | {figures['top1']:.1%} | {figures['log_loss']:.3f} "
                    f"| {figures['calibration_error']:.3f} |"
                )
    return [*lines, "", *(f"- {sentence}." for sentence in describe_choice(metrics)), ""]


def _escape(name: str) -> str:
    return name.replace("|", "\\|")
