"""Measure a model on labelled pictures.

    python weights/evaluate.py tiny-imagenet-200/val

The folder holds class folders named by WordNet id, or, as Tiny ImageNet-200's `val` does, `images/` and
`val_annotations.txt`, or, for a few photos, `labels.csv` with the columns path and wnid. Pictures go through
`mfcli.load_predictor` as through `mf predict`, so what is measured is what users get. Prints top-1 with its 95 % Wilson
interval, top-5, the expected calibration error (15 bins of equal width), pictures a second and the size of its file;
with pictures of classes that the model does not have, also how well its top probability tells them apart (AUROC).
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
    """One picture's truth and the model's five best."""

    wnid: str
    found: tuple[str | None, ...]
    prob: float

    @property
    def is_right(self) -> bool:
        """Whether the first is the truth."""
        return self.found[0] == self.wnid


def labelled(folder: Path) -> list[tuple[Path, str]]:
    """Return pictures and WordNet ids, by name."""
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


def interval(right: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, in percent."""
    z = 1.959964
    share = right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return 100 * (centre - half), 100 * (centre + half)


def bins(probs: Sequence[float], right: Sequence[bool]) -> list[tuple[int, float, float]]:
    """Return count, mean top probability and share of right answers of each bin that is not empty."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for prob, is_right in zip(probs, right, strict=True):
        members[min(int(prob * BINS), BINS - 1)].append((prob, is_right))
    return [(len(m), statistics.fmean(p for p, _ in m), statistics.fmean(r for _, r in m)) for m in members if m]


def calibration_error(probs: Sequence[float], right: Sequence[bool]) -> float:
    """Return the expected calibration error: how far probability and accuracy are apart, mean over the answers."""
    return sum(count * abs(prob - share) for count, prob, share in bins(probs, right)) / len(probs)


def auroc(inside: Sequence[float], outside: Sequence[float]) -> float:
    """Return how often a value from `inside` is above one from `outside`, ties counted half."""
    ordered = np.sort(outside)
    below, not_above = (np.searchsorted(ordered, inside, side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / len(ordered))


def per_class(answers: Sequence[Answer], names: dict[str, str]) -> list[tuple[float, str]]:
    """Return top-1 in percent and name of each class, best first."""
    members: dict[str, list[Answer]] = {}
    for answer in answers:
        members.setdefault(answer.wnid, []).append(answer)
    shares = [(100 * sum(a.is_right for a in m) / len(m), names[wnid]) for wnid, m in members.items()]
    return sorted(shares, reverse=True)


def measure(folder: Path, model: str, engine: str, precision: str, rounds: int) -> dict[str, Any]:
    """Return the figures by name; the rate is the median of so many rounds over all pictures."""
    predictor = mfcli.load_predictor(model, engine=engine, precision=precision)
    names = {label.wnid: label.name for label in predictor.labels if label.wnid}
    pictures = labelled(folder)
    if not any(wnid in names for _, wnid in pictures):
        raise SystemExit(f"{folder} holds no picture of a class that {predictor.run_info.model} knows")
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        results = list(predictor.predict(Source(str(path)) for path, _ in pictures))
        seconds.append(time.perf_counter() - started)
    if failed := [result for result in results if result.error]:
        reason = failed[0].error.message if failed[0].error else ""
        raise SystemExit(f"{len(failed)} pictures failed, the first: {failed[0].input}: {reason}")
    answers = [_answer(wnid, result) for (_, wnid), result in zip(pictures, results, strict=True)]
    inside = [answer for answer in answers if answer.wnid in names]
    outside = [answer.prob for answer in answers if answer.wnid not in names]
    probs, right = [answer.prob for answer in inside], [answer.is_right for answer in inside]
    classes = per_class(inside, names)
    figures = {
        "model": predictor.run_info.model,
        "engine": f"{predictor.run_info.engine} {predictor.run_info.precision}",
        "pictures": len(inside),
        "top1": 100 * statistics.fmean(right),
        "top1_interval": interval(sum(right), len(right)),
        "top5": 100 * statistics.fmean(answer.wnid in answer.found for answer in inside),
        "calibration_error": calibration_error(probs, right),
        "images_per_s": len(pictures) / statistics.median(seconds),
        "images_per_s_rounds": [round(len(pictures) / one, 1) for one in seconds],
        "artifact_bytes": predictor.artifact.size_bytes,
        "best_classes": classes[:5],
        "worst_classes": classes[-5:],
        "bins": bins(probs, right),
    }
    if outside:
        figures |= {"auroc": auroc(probs, outside), "pictures_outside": len(outside)}
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=1, help="how often everything is done, for the rate")
    parser.add_argument("--json", type=Path, help="also write the figures there")
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
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has seen enough
    main()
