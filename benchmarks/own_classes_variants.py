"""Compare variants of what mf train does on pictures that no published figure is of, to choose its constants.

    python benchmarks/own_classes_variants.py [--resplits 20] [--per-class 30 100] FOLDER...

FOLDER has a folder for each class. Each resplit draws classes (`--classes`) and some pictures of each to learn from,
and judges by the others. Three tables: the log loss and top-1 of the heads; for the bound on the error of answers, how
often it was broken; for distances, how well they tell apart pictures of classes that were left out, of the other
folders (`--not-in` leaves classes of these out) and generated ones, as AUROC. `--per-class 0.8 --only-bounds` judges
the bounds as mf train divides. What ships was chosen with cats and dogs, and the folders `train` of hymenoptera and
Imagenette, the head also with textures: 2, 5 and 10 classes of 2 to 250 pictures, and four fifths of at most 700.
"""

import argparse
import math
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as mf train does

import numpy as np
from numpy.typing import NDArray

from mfcli.inference.model_loading import load_predictor
from mfcli.inference.predictor import Predictor
from mfcli.inputs.source import Source
from mfcli.models import abstention, head
from mfcli.models.abstention import Familiarity, Thresholds
from mfcli.models.calibration import log_loss
from mfcli.models.head import FittedHead, TrainingSet
from mfcli.models.splits import divide, group_duplicates
from mfcli.settings import Settings
from mfcli.synthetic import make_picture
from mfcli.training.views import Views, compute_views

RISKS = (0.05, 1e-2, 1e-3, 1e-4)
MAX_ERRORS = (0.05, 0.1, 0.2)
SHRINKAGES = (0.02, 0.1, 0.3, 1.0)
MIN_ANSWERS = 50
"""In a resplit: the error of fewer is mostly chance."""
MAX_SCORED = 500
"""Pictures of a kind whose distances are compared."""
GENERATED = 200

Features = NDArray[np.float32]
Floats = NDArray[np.float64]
Table = defaultdict[tuple[str, ...], list[float]]


@dataclass(frozen=True)
class Pictures:
    """Pictures of a folder: features float32 (N, 2, dim), groups of duplicates and classes (N,)."""

    name: str
    classes: list[str]
    digests: list[bytes]
    features: Features
    groups: NDArray[np.intp]
    targets: NDArray[np.intp]

    def take(self, indices: NDArray[Any]) -> "Pictures":
        """Return some of them; classes are numbered anew."""
        kept, targets = np.unique(self.targets[indices], return_inverse=True)
        return Pictures(
            self.name,
            [self.classes[index] for index in kept],
            [self.digests[index] for index in indices],
            self.features[indices],
            self.groups[indices],
            targets,
        )

    def prepare(self, seed: int) -> TrainingSet:
        """Return them as mf train learns from them."""
        folds = divide(self.digests, self.groups, self.targets, 5, f"folds {seed} ")
        count = len(self.targets)
        others = tuple(
            divide(self.digests, self.groups, self.targets, 5, f"folds {seed} {number} ")
            for number in range(1, head.count_divisions(count, len(self.classes)))
        )
        weights = np.full(count, 1 / count)
        return TrainingSet(self.features[:, 0], self.features.mean(1), self.targets, folds, weights, others)


def read_folder(folder: Path, predictor: Predictor, settings: Settings) -> Pictures:
    """Return the pictures of a folder that can be read."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    found = compute_views(predictor, [Source(str(path)) for path in paths], settings)
    views = [(path.relative_to(folder).parts[0], own) for path, own in zip(paths, found, strict=True)]
    known = [(name, own) for name, own in views if isinstance(own, Views)]
    classes, targets = np.unique([name for name, _ in known], return_inverse=True)
    features = np.stack([own.features for _, own in known])
    digests = [own.digest for _, own in known]
    groups = group_duplicates(digests, np.array([own.hash for _, own in known], np.uint64), features[:, 0])
    return Pictures(str(folder), classes.tolist(), digests, features, groups, targets)


def draw_classes(pictures: Pictures, count: int, seed: int) -> Pictures:
    """Return the pictures of some classes; of all of them if there are no more."""
    drawn = np.random.default_rng(seed).permutation(len(pictures.classes))[:count]
    return pictures.take(np.flatnonzero(np.isin(pictures.targets, drawn)))


def resplit(pictures: Pictures, per_class: float, seed: int) -> tuple[Pictures, Pictures]:
    """Return pictures to learn from and the others, less the duplicates of the first."""
    order = np.random.default_rng(seed).permutation(len(pictures.targets))
    members = [order[pictures.targets[order] == index] for index in range(len(pictures.classes))]
    counts = [int(per_class if per_class >= 1 else per_class * len(own)) for own in members]
    learned = np.concatenate([own[:count] for own, count in zip(members, counts, strict=True)])
    others = order[~np.isin(pictures.groups[order], pictures.groups[learned])]
    return pictures.take(learned), pictures.take(others)


def softmax(logits: NDArray[Any]) -> Floats:
    """Return probabilities, (N, classes)."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def fit_variants(data: TrainingSet) -> Iterator[tuple[str, Callable[[Features], Floats]]]:
    """Yield the name of each variant and what gives its logits."""
    scaling = head._Scaling(data.fitted)
    data = replace(data, features=scaling.apply(data.features), fitted=scaling.apply(data.fitted))
    kinds = (head._try_regressions(data, lambda: False), list(head._try_discriminants(data)))
    chosen = [min(kind, key=lambda own: own.loss) for kind in kinds]
    fits = [head._fit_all(data, own) / own.temperature for own in chosen]
    logits = np.mean([own.logits / own.temperature for own in chosen], axis=0)
    mean = head._Candidate(data, head.Method.REGRESSION, math.nan, logits)
    once = min(head._try_regressions(replace(data, other_folds=()), lambda: False), key=lambda own: own.loss)
    weights = {
        "regression, folds once": head._fit_all(data, once) / once.temperature,
        "regression": fits[0],
        "discriminant": fits[1],
        "the better one": fits[int(np.argmin([own.loss for own in chosen]))],
        "their mean": np.mean(fits, axis=0) / mean.temperature,
    }
    for name, fitted in weights.items():
        yield name, lambda x, fitted=fitted: scaling.apply(x) @ fitted  # type: ignore[misc]


def compare_heads(others: Pictures, where: str, data: TrainingSet, table: Table) -> None:
    """Judge the variants of heads."""
    for name, logits in fit_variants(data):
        judged = logits(others.features[:, 0])
        table[name, where, "log loss"].append(log_loss(judged, others.targets, np.ones(len(judged))))
        table[name, where, "top-1"].append(float((judged.argmax(1) == others.targets).mean()))


def compare_bounds(learned: Pictures, others: Pictures, where: str, fitted: FittedHead, table: Table) -> None:
    """Judge how often more answers are wrong than a bound allows, and how many are given."""
    probs = softmax(fitted.out_of_fold)
    judged = softmax(fitted.head.logits(others.features[:, 0]))
    is_wrong = judged.argmax(1) != others.targets
    for risk in RISKS:
        abstention._LOG_RISK = -math.log(risk)
        errors = abstention.list_error_bounds(probs.max(1), probs.argmax(1) == learned.targets)
        for max_error in MAX_ERRORS:
            answered = judged.max(1) >= Thresholds(errors, None).find_prob(max_error)
            name, column = f"risk {risk:g}", f"{max_error:.0%}"
            table[name, where, column, "answered"].append(float(answered.mean()))
            is_broken = bool(answered.sum() >= MIN_ANSWERS and is_wrong[answered].mean() >= max_error)
            table[name, where, column, "broken"].append(float(is_broken))
            table[name, "all", column, "broken"].append(float(is_broken))


def compute_auroc(familiar: Floats, unfamiliar: Floats) -> float:
    """Return how often an unfamiliar picture has the larger score."""
    ranks = np.concatenate([familiar, unfamiliar]).argsort(kind="stable").argsort(kind="stable")
    count = len(unfamiliar)
    return float((ranks[len(familiar) :].sum() - count * (count - 1) / 2) / (len(familiar) * count))


def list_scores(data: TrainingSet, fitted: FittedHead) -> Iterator[tuple[str, Callable[[Features], Floats]]]:
    """Yield ways to say how unlike the training pictures others are."""
    yield "largest probability", lambda x: -softmax(fitted.head.logits(x)).max(1)
    for shrinkage in SHRINKAGES:
        abstention._SHRINKAGE = shrinkage
        yield f"Mahalanobis, {shrinkage:g}", Familiarity.fit(data.features, data.targets, data.num_classes).distances
    mean, std = data.features.mean(0), data.features.std(0) + 1e-8
    plain = (data.features - mean) / std

    def nearest(x: Features, rank: int) -> Floats:
        moved = (x - mean) / std
        squares = np.square(moved).sum(1)[:, np.newaxis] - 2 * moved @ plain.T + np.square(plain).sum(1)
        return np.partition(squares, rank - 1, axis=1)[:, rank - 1]

    for rank in (1, 5):
        yield f"nearest neighbour {rank}", lambda x, rank=rank: nearest(x, rank)  # type: ignore[misc]


def compare_distances(
    others: Pictures, unfamiliar: dict[str, Features], where: str, data: TrainingSet, fitted: FittedHead, table: Table
) -> None:
    """Judge the distances."""
    for name, score in list_scores(data, fitted):
        familiar = score(others.features[:MAX_SCORED, 0])
        for kind, features in unfamiliar.items():
            table[name, where, kind].append(compute_auroc(familiar, score(features[:MAX_SCORED])))
            table[name, "all", "all"].append(table[name, where, kind][-1])


def leave_classes_out(pictures: Pictures, seed: int) -> tuple[Pictures, dict[str, Features]]:
    """Return the pictures of two thirds of the classes, and the others' features in any order."""
    random = np.random.default_rng(seed)
    is_out = np.isin(pictures.targets, random.permutation(len(pictures.classes))[: len(pictures.classes) // 3])
    out = random.permutation(pictures.features[is_out, 0])
    return pictures.take(np.flatnonzero(~is_out)), {"classes left out": out} if len(out) else {}


def print_table(title: str, table: Table) -> None:
    """Print the means, a line for each variant, and their mean over the columns."""
    print(f"\n{title}")
    lines: dict[tuple[str, ...], dict[tuple[str, ...], float]] = defaultdict(dict)
    for key, values in table.items():
        lines[key[:1]][key[1:]] = float(np.mean(values))
    columns = list(dict.fromkeys(column for line in lines.values() for column in line))
    for number, column in enumerate(columns):
        print(f"  [{number}] {', '.join(column)}")
    for (name,), line in lines.items():
        values = [line.get(column, float("nan")) for column in columns]
        print(f"{name:28}" + " ".join(f"{value:7.4f}" for value in values))


def main() -> None:
    """Compare all on all folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--resplits", type=int, default=20)
    parser.add_argument("--per-class", type=float, nargs="+", default=[30, 100], help="below 1 a share")
    parser.add_argument("--classes", type=int, nargs="+", help="a problem has; all if left out")
    parser.add_argument("--only-bounds", action="store_true")
    parser.add_argument("--not-in", nargs="*", default=[], help="classes that other folders have, too")
    arguments = parser.parse_args()
    predictor, settings = load_predictor(features=True, abstain="off"), Settings.from_environ()
    folders = [read_folder(folder, predictor, settings) for folder in arguments.folders]
    generated = np.array(
        [own.features for own in predictor.embed([make_picture(s) for s in range(GENERATED)])], np.float32
    )
    heads: Table = defaultdict(list)
    bounds: Table = defaultdict(list)
    distances: Table = defaultdict(list)
    for pictures in folders:
        unfamiliar = {"generated": generated}
        for other in folders:
            if other is not pictures:
                fits = ~np.isin(np.array(other.classes)[other.targets], arguments.not_in)
                unfamiliar[Path(other.name).name] = np.random.default_rng(0).permutation(other.features[fits, 0])
        for count, per_class in product(arguments.classes or [len(pictures.classes)], arguments.per_class):
            where = f"{Path(pictures.name).name} {count} x {per_class:g}"
            print(where, file=sys.stderr)
            for seed in range(arguments.resplits):
                learned, others = resplit(draw_classes(pictures, count, seed), per_class, seed)
                if len(others.targets) < MIN_ANSWERS:
                    break
                data = learned.prepare(seed)
                compare_bounds(learned, others, where, head.fit_head(data), bounds)
                if arguments.only_bounds:
                    continue
                compare_heads(others, where, data, heads)
                kept, out = leave_classes_out(pictures, seed)
                learned, others = resplit(kept, per_class, seed)
                data = learned.prepare(seed)
                compare_distances(others, unfamiliar | out, where, data, head.fit_head(data), distances)
    print_table("Heads", heads)
    print_table("AUROC of distances", distances)
    print_table("Bounds", bounds)


if __name__ == "__main__":
    main()
