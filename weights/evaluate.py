"""Measure a model on labelled pictures, as `mf evaluate` does, for the model card.

    python weights/evaluate.py tiny-imagenet-200/val

The folder holds class folders named by WordNet id, or, as Tiny ImageNet-200's `val` does, `images/` and
`val_annotations.txt`. Prints top-1 with its 95 % Wilson interval, top-5, the expected calibration error (15 bins of
equal width), pictures per second and the size of the artifact; with pictures of classes that the model does not have,
also the AUROC of its top probability at separating them.
"""

import argparse
import json
import signal
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mfcli
from mfcli.errors import MfError
from mfcli.inference.predictor import Predictor
from mfcli.inputs.dataset import read_judged
from mfcli.tasks.evaluate import EvaluateRequest, evaluate


def list_labelled(folder: Path) -> list[tuple[Path, str]]:
    """Return pictures and their WordNet ids, sorted by name."""
    return [(Path(picture.source.argument), picture.label) for picture in read_judged(folder)]


def compute_auroc(inside: Sequence[float], outside: Sequence[float]) -> float:
    """Return the probability that a value of `inside` exceeds one of `outside`; ties count half."""
    ordered = np.sort(outside)
    below, not_above = (np.searchsorted(ordered, inside, side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / len(ordered))


def measure_auroc(predictor: Predictor, folder: Path) -> dict[str, Any]:
    """Return how well the top probability separates pictures of other classes; nothing where there are none."""
    wnids = {label.wnid for label in predictor.labels}
    pictures = list_labelled(folder)
    are_inside = [wnid in wnids for _, wnid in pictures]
    if all(are_inside):
        return {}
    probs: dict[bool, list[float]] = {True: [], False: []}
    for is_inside, result in zip(are_inside, predictor.stream(path for path, _ in pictures), strict=True):
        if result.prob is not None:
            probs[is_inside].append(result.prob)
    return {"auroc": compute_auroc(probs[True], probs[False]), "pictures_outside": len(probs[False])}


def measure(folder: Path, model: str, engine: str, precision: str, rounds: int) -> dict[str, Any]:
    """Return the figures by name, shares in percent.

    Args:
        folder: of labelled pictures.
        model: a name or a row of the registry.
        engine: as in `mf evaluate`.
        precision: as in `mf evaluate`.
        rounds: runs over all pictures; the rate is their median.

    Raises:
        SystemExit: a picture fails.
        MfError: there is nothing to measure.
    """
    predictor = mfcli.load_predictor(model, engine=engine, precision=precision, logits=True)
    evaluations = [evaluate(predictor, EvaluateRequest(folder)) for _ in range(rounds)]
    figures, failed = evaluations[0].figures, evaluations[0].summary.failed
    if failed:
        raise SystemExit(f"{failed} pictures failed: mf evaluate {folder} --predictions rows.jsonl says which and why")
    rates = [evaluation.figures["images_per_s"] for evaluation in evaluations]
    per_class = evaluations[0].per_class
    classes = sorted(((100 * row["correct"] / row["count"], row["name"]) for row in per_class), reverse=True)
    return {
        "model": figures["model"],
        "engine": f"{figures['engine']} {figures['precision']}",
        "pictures": figures["pictures"],
        "top1": 100 * figures["top1"],
        "top1_interval": tuple(100 * limit for limit in figures["top1_interval"]),
        "top5": 100 * figures["top5"],
        "calibration_error": figures["calibration_error"],
        "images_per_s": statistics.median(rates),
        "images_per_s_rounds": [round(rate, 1) for rate in rates],
        "artifact_bytes": predictor.artifact.size_bytes,
        "best_classes": classes[:5],
        "worst_classes": classes[-5:],
        "bins": [tuple(one.values()) for one in figures["bins"]],
    } | measure_auroc(predictor, folder)


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


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when the reader closes the pipe, as in `| head`
    main()
