"""Measure a model on labelled pictures.

    python weights/evaluate.py tiny-imagenet-200/val

The folder holds class folders named by WordNet id, or, as Tiny ImageNet-200's `val` does, `images/` and
`val_annotations.txt`, or `labels.csv` with the columns path and wnid. Pictures go through `mfcli.load_predictor`, as
in `mf predict`. Prints top-1 with its 95 % Wilson interval, top-5, the expected calibration error (15 bins of equal
width), pictures per second and the size of the artifact; with pictures of classes that the model does not have, also
the AUROC of its top probability at separating them.
"""

import argparse
import csv
import json
import math
import signal
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mfcli
from mfcli.errors import MfError
from mfcli.inputs.codecs import DEFAULT_SUFFIXES
from mfcli.inputs.sources import Source
from mfcli.results import PictureResult

BINS = 15


@dataclass(frozen=True)
class Answer:
    """The true class of a picture, the predicted ones and the top probability."""

    wnid: str
    predicted: tuple[str | None, ...]
    prob: float

    @property
    def is_right(self) -> bool:
        """Whether the top prediction is the true class."""
        return self.predicted[0] == self.wnid


def list_labelled(folder: Path) -> list[tuple[Path, str]]:
    """Return pictures and their WordNet ids, sorted by name."""
    if (folder / "val_annotations.txt").is_file():
        lines = (folder / "val_annotations.txt").read_text().splitlines()
        return [(folder / "images" / name, wnid) for name, wnid in (line.split("\t")[:2] for line in lines)]
    if (folder / "labels.csv").is_file():
        with (folder / "labels.csv").open(encoding="utf-8-sig", newline="") as stream:
            return [(folder / row["path"], row["wnid"]) for row in csv.DictReader(stream)]
    return [
        (path, wnid.name)
        for wnid in sorted(folder.glob("n[0-9]*"))
        for path in sorted(wnid.rglob("*"))
        if path.suffix.lower() in DEFAULT_SUFFIXES
    ]


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a proportion, in percent."""
    z = 1.959964
    share = right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return 100 * (centre - half), 100 * (centre + half)


def bin_answers(probs: Sequence[float], right: Sequence[bool]) -> list[tuple[int, float, float]]:
    """Return count, mean top probability and share of right answers of each bin that is not empty."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for prob, is_right in zip(probs, right, strict=True):
        members[min(int(prob * BINS), BINS - 1)].append((prob, is_right))
    return [(len(m), statistics.fmean(p for p, _ in m), statistics.fmean(r for _, r in m)) for m in members if m]


def compute_calibration_error(probs: Sequence[float], right: Sequence[bool]) -> float:
    """Return the expected calibration error: the mean over the answers of |accuracy - probability| of their bin."""
    return sum(count * abs(prob - share) for count, prob, share in bin_answers(probs, right)) / len(probs)


def compute_auroc(inside: Sequence[float], outside: Sequence[float]) -> float:
    """Return the probability that a value of `inside` exceeds one of `outside`; ties count half."""
    ordered = np.sort(outside)
    below, not_above = (np.searchsorted(ordered, inside, side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / len(ordered))


def rank_classes(answers: Sequence[Answer], names: dict[str, str]) -> list[tuple[float, str]]:
    """Return top-1 in percent and name of each class, best first."""
    members: dict[str, list[Answer]] = {}
    for answer in answers:
        members.setdefault(answer.wnid, []).append(answer)
    shares = [(100 * sum(a.is_right for a in m) / len(m), names[wnid]) for wnid, m in members.items()]
    return sorted(shares, reverse=True)


def measure(folder: Path, model: str, engine: str, precision: str, rounds: int) -> dict[str, Any]:
    """Return the figures by name.

    Args:
        folder: of labelled pictures.
        model: a name or a row of the registry.
        engine: as in `mf predict`.
        precision: as in `mf predict`.
        rounds: runs over all pictures; the rate is their median.

    Raises:
        SystemExit: there is nothing to measure, or a picture fails.
    """
    predictor = mfcli.load_predictor(model, engine=engine, precision=precision)
    names = {label.wnid: label.name for label in predictor.labels if label.wnid}
    pictures = list_labelled(folder)
    if not any(wnid in names for _, wnid in pictures):
        raise SystemExit(f"{folder} has no picture of a class of {predictor.run_info.model}")
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        results = list(predictor.stream(Source(str(path)) for path, _ in pictures))
        seconds.append(time.perf_counter() - started)
    if failed := [result for result in results if result.error]:
        reason = failed[0].error.message if failed[0].error else ""
        raise SystemExit(f"{len(failed)} pictures failed, the first: {failed[0].input}: {reason}")
    answers = [_answer(wnid, result) for (_, wnid), result in zip(pictures, results, strict=True)]
    inside = [answer for answer in answers if answer.wnid in names]
    outside = [answer.prob for answer in answers if answer.wnid not in names]
    probs, right = [answer.prob for answer in inside], [answer.is_right for answer in inside]
    classes = rank_classes(inside, names)
    figures = {
        "model": predictor.run_info.model,
        "engine": f"{predictor.run_info.engine} {predictor.run_info.precision}",
        "pictures": len(inside),
        "top1": 100 * statistics.fmean(right),
        "top1_interval": wilson_interval(sum(right), len(right)),
        "top5": 100 * statistics.fmean(answer.wnid in answer.predicted for answer in inside),
        "calibration_error": compute_calibration_error(probs, right),
        "images_per_s": len(pictures) / statistics.median(seconds),
        "images_per_s_rounds": [round(len(pictures) / one, 1) for one in seconds],
        "artifact_bytes": predictor.artifact.size_bytes,
        "best_classes": classes[:5],
        "worst_classes": classes[-5:],
        "bins": bin_answers(probs, right),
    }
    if outside:
        figures |= {"auroc": compute_auroc(probs, outside), "pictures_outside": len(outside)}
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=1, help="runs over all pictures, for the rate")
    parser.add_argument("--json", type=Path, help="file to write the figures to as well")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds} is not positive")
    try:
        figures = measure(options.folder, options.model, options.engine, options.precision, options.rounds)
    except MfError as error:
        raise SystemExit(f"{error.message}\n{error.hint or ''}") from error
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    for name, value in figures.items():
        print(f"{name:18} {value:.4f}" if isinstance(value, float) else f"{name:18} {value}")


def _answer(wnid: str, result: PictureResult) -> Answer:
    return Answer(wnid, tuple(p.wnid for p in result.predictions), result.predictions[0].prob)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when the reader closes the pipe, as in `| head`
    main()
