"""Measure mf train: accuracy, calibration and time on folders of pictures, and its solver beside scikit-learn's.

    python benchmarks/own_classes.py FOLDER... [--seeds 5] [--with-sklearn] [--finetune EPOCHS] [--quick]

FOLDER is what `mf train` takes. Where it has no folder `val`, each seed sets other pictures aside. The first run is
cold (an empty cache), the others find the features in the cache. `--with-sklearn` fits LogisticRegressionCV to the same
features and compares the log losses and the times; it needs scikit-learn. `--finetune` trains the backbone, too, with
the first seed, and reports both models, whichever is kept; it needs torch. `--quick` takes generated pictures instead
of a FOLDER. A table on stdout, the times of all runs on stderr.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as mf train does

import numpy as np
from PIL import Image

from mfcli.synthetic import make_picture


def train(data: Path, output: Path, seed: int, cache: Path, *options: str) -> tuple[dict[str, Any], float]:
    """Run mf train in a process of its own; return its figures and the seconds that it took."""
    command = [
        sys.executable,
        "-m",
        "mfcli",
        "train",
        str(data),
        "-o",
        str(output),
        "--seed",
        str(seed),
        "-q",
        *options,
    ]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--format", "json", "--overwrite"],
        capture_output=True,
        env=os.environ | {"MF_CACHE_DIR": str(cache)},
        check=True,
    )
    return json.loads(done.stdout), time.perf_counter() - started


def compare_with_sklearn(data: Path, cache: Path) -> dict[str, float]:
    """Return log losses and seconds of this solver and of scikit-learn's, on the same features."""
    from sklearn.linear_model import LogisticRegressionCV

    from mfcli.inference.model_loading import load_predictor
    from mfcli.inputs.dataset import Split, read_dataset
    from mfcli.models.calibration import log_loss
    from mfcli.models.head import fit_head
    from mfcli.settings import Settings
    from mfcli.training.assignment import assign_pictures, list_classes, make_training_set
    from mfcli.training.request import ClassWeight
    from mfcli.training.views import Views, compute_views

    dataset, settings = read_dataset(data), Settings.from_environ({"MF_CACHE_DIR": str(cache)})
    views = compute_views(load_predictor(features=True), [own.source for own in dataset.pictures], settings)
    pictures = assign_pictures(dataset, views, 0)
    classes = list_classes(pictures)
    training = make_training_set(pictures, classes, ClassWeight.NONE, 0)
    judged = [own for own in pictures if own.split is Split.VAL and isinstance(own.views, Views)]
    features = np.stack([own.known_views.features[0] for own in judged])
    targets = np.array([classes.index(own.label) for own in judged])
    started = time.perf_counter()
    fitted = fit_head(training)
    seconds = time.perf_counter() - started
    mean, std = training.fitted.mean(0), training.fitted.std(0)
    started = time.perf_counter()
    reference = LogisticRegressionCV(Cs=10, cv=5, scoring="neg_log_loss", max_iter=1000, n_jobs=-1)
    reference.fit((training.fitted - mean) / std, training.targets)
    reference_seconds = time.perf_counter() - started
    log_probs = reference.predict_log_proba((features - mean) / std)
    logits = fitted.head.logits(features).astype(np.float64)
    return {
        "solver_log_loss": log_loss(logits, targets, np.ones(len(targets))),
        "sklearn_log_loss": float(-log_probs[np.arange(len(targets)), targets].mean()),
        "solver_seconds": seconds,
        "sklearn_seconds": reference_seconds,
    }


def write_generated(folder: Path) -> Path:
    """Write pictures of two classes that differ in colour."""
    for colour in ("blue", "red"):
        (folder / colour).mkdir(parents=True)
        for seed in range(20):
            picture = make_picture(seed + 100 * (colour == "red"), 96, 72)
            Image.blend(picture, Image.new("RGB", picture.size, colour), 0.5).save(folder / colour / f"{seed}.jpg")
    return folder


def finetune(folder: Path, scratch: Path, cache: Path, epochs: int) -> dict[str, float]:
    """Return the figures of a fine-tuning and of the head that it began with."""
    metrics, seconds = train(folder, scratch / "tuned", 0, cache, "--finetune", "--epochs", str(epochs))
    figures = {
        f"{kind}_{name}": float(metrics["finetune"][kind]["val"][name])
        for kind in ("probe", "finetuned")
        for name in ("top1", "log_loss")
    }
    return figures | {"best_epoch": metrics["finetune"]["best_epoch"], "finetune_seconds": seconds}


def measure(folder: Path, scratch: Path, seeds: int, with_sklearn: bool, epochs: int) -> dict[str, float]:
    """Return the figures of a folder, means over the seeds."""
    cache, runs = scratch / "cache", []
    for seed in range(seeds):
        runs.append(train(folder, scratch / "model", seed, cache))
        print(f"{folder}, seed {seed}: {runs[-1][1]:.1f} s", file=sys.stderr)
    _, again = train(folder, scratch / "model", 0, cache)
    names = ("top1", "log_loss", "calibration_error")
    figures = {name: statistics.mean(metrics["val"][name] for metrics, _ in runs) for name in names}
    times = {"cold_seconds": runs[0][1], "again_seconds": again}
    figures |= times | (compare_with_sklearn(folder, cache) if with_sklearn else {})
    return figures | (finetune(folder, scratch, cache, epochs) if epochs else {})


def main() -> None:
    """Measure every folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--with-sklearn", action="store_true")
    parser.add_argument("--finetune", type=int, default=0, metavar="EPOCHS", help="fine-tune for so many; 0 for none")
    parser.add_argument("--quick", action="store_true", help="a check that it runs; the figures mean nothing")
    arguments = parser.parse_args()
    if bool(arguments.folders) is arguments.quick:
        parser.error("name folders, or --quick")
    with tempfile.TemporaryDirectory(prefix="mf-own-classes-") as name:
        folders = arguments.folders or [write_generated(Path(name, "generated"))]
        for number, folder in enumerate(folders):
            scratch = Path(name, str(number))
            figures = measure(folder, scratch, arguments.seeds, arguments.with_sklearn, arguments.finetune)
            if not number:
                print(f"{'folder':<40}", *(f"{column:>20}" for column in figures))
            shown = folder.name if arguments.quick else str(folder)
            print(f"{shown:<40}", *(f"{value:>20.4f}" for value in figures.values()), flush=True)


if __name__ == "__main__":
    main()
