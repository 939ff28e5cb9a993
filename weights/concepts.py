"""Measure the concepts that a model names on labelled pictures.

    python weights/concepts.py tiny-imagenet-200/train --holdout 5
    python weights/concepts.py tiny-imagenet-200/val --json weights/concepts.json

For each confidence: the share of pictures for which a concept is named, the share of these that show it (its synset is
the true class or above it), the mean probability of the concepts, and the bits gained per picture: log2 of ImageNet's
classes over those below the concept, 0 where it is wrong or none is named. Below stands, at each of these accuracies,
what Deng et al. gain (https://doi.org/10.1109/CVPR.2012.6248086): the concept with the largest probability times (bits
+ constant), the constant being the one that gains most bits at that accuracy or a higher one.

Folders are those of evaluate.py; --holdout N takes the pictures of a training folder that `train.py --holdout N` leaves
out.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import mfcli
from evaluate import list_labelled
from mfcli.inputs.sources import Source
from mfcli.models.concepts import HeadConcepts, ancestors, load_hierarchy
from mfcli.models.labels import load_imagenet_labels

CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
CONSTANTS = (*np.arange(0, 5, 0.25), *np.arange(5, 40), *np.arange(40, 400, 10))
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """Figures of one rule over all pictures; shares are 0 to 1."""

    setting: float
    named: float
    right: float
    prob: float
    bits: float


class Answers:
    """The probability of every concept for every picture, and which concepts are true."""

    def __init__(self, model: str, pictures: list[tuple[Path, str]]) -> None:
        classes = len(mfcli.load_predictor(model).labels)
        predictor = mfcli.load_predictor(model, top_k=classes)
        concepts = HeadConcepts(predictor.labels)
        columns = concepts.columns[concepts.named]
        self.sizes = concepts.sizes[concepts.named]
        wnids = [load_hierarchy().wnid(column) for column in columns.tolist()]
        full = HeadConcepts(load_imagenet_labels(21841))
        self.bits = np.array([np.log2(21841 / max(len(full.members(column)), 1)) for column in columns.tolist()])
        above = {wnid: {wnid, *(label.wnid for label in ancestors(wnid))} for wnid in {wnid for _, wnid in pictures}}
        probs, truth = [], []
        results = predictor.stream(Source(str(path)) for path, _ in pictures)
        for (path, wnid), result in zip(pictures, results, strict=True):
            if result.error:
                raise SystemExit(f"{path}: {result.error.message}")
            row = np.zeros(classes)
            row[[p.class_index for p in result.predictions]] = [p.prob for p in result.predictions]
            probs.append(concepts.sum(row))
            truth.append([other in above[wnid] for other in wnids])
        self.probs, self.truth = np.array(probs), np.array(truth)

    def measure(self, setting: float, chosen: NDArray[np.intp], named: NDArray[np.bool_]) -> Row:
        """Return the figures of one choice of a concept per picture, where `named`."""
        pictures = np.arange(len(chosen))
        right = self.truth[pictures, chosen] & named
        probs = self.probs[pictures, chosen][named]
        return Row(
            setting,
            float(named.mean()),
            float(right.sum() / max(named.sum(), 1)),
            float(probs.mean()) if len(probs) else 0.0,
            float((self.bits[chosen] * right).mean()),
        )

    def threshold(self, confidence: float) -> Row:
        """Measure the smallest concept that holds a share of the probability, as mfcli names it."""
        fits = self.probs >= confidence
        return self.measure(confidence, fits.argmax(1), fits.max(1))

    def gain_most(self, constant: float) -> Row:
        """Measure the concept of the largest expected gain; none where the root's, `constant`, is larger."""
        gains = (self.bits + constant) * self.probs
        are_better: NDArray[np.bool_] = gains.max(1) > constant
        return self.measure(constant, gains.argmax(1), are_better)


def list_pictures(folder: Path, holdout: int) -> list[tuple[Path, str]]:
    """Return pictures and their WordNet ids."""
    if not holdout:
        return list_labelled(folder)
    from pictures import split

    _, samples, classes = split(folder, holdout)
    return [(Path(path), classes[index]) for path, index in samples]


def print_rows(title: str, rows: Iterable[Row]) -> None:
    """Print a table."""
    print(f"{title:>12}   named   right    prob    bits")
    for row in rows:
        print(f"{row.setting:12.2f} {row.named:7.3f} {row.right:7.3f} {row.prob:7.3f} {row.bits:7.2f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--holdout", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to write the figures to as well")
    options = parser.parse_args()
    answers = Answers(options.model, list_pictures(options.folder, options.holdout))
    rows = [answers.threshold(confidence) for confidence in CONFIDENCES]
    gains = [answers.gain_most(constant) for constant in CONSTANTS]
    best = [max((g for g in gains if g.right >= row.right), key=lambda g: g.bits, default=None) for row in rows]
    print(f"{len(answers.probs)} pictures")
    print_rows("confidence", rows)
    print_rows("constant", [row for row in best if row])
    if options.json:
        figures = {"pictures": len(answers.probs), "concepts": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
