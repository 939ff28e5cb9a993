"""Measure mf predict on large photos: exact decoding, scaled decoding, and what a notebook does.

First, processor time per photo, from file to tensor, decoded in this process: Pillow and timm's transform as in a
notebook, and mf's two ways to decode. Then whole processes in turns, start-up included:

    mf predict --files-from LIST --format csv --decode exact|scaled

The ratio is the median of the ratios within a round. Last, how many photos have the same first class both ways:

    python benchmarks/decode.py FOLDER            # without FOLDER: synthetic JPEGs of 4032x3024 pixels
    python benchmarks/decode.py FOLDER --model caformer_s18 --weights FILE --pictures 100

`--weights random` makes random ones, whose first classes mean nothing. Photos are repeated until there are as many as
`--pictures`.
"""

import argparse
import csv
import io
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from mfcli.inference.model_loading import load_predictor
from mfcli.inference.predictor import Predictor
from mfcli.inputs.codecs import DecodeMode
from mfcli.inputs.pictures import make_source
from mfcli.models.checkpoint import write_random
from mfcli.models.registry import find_variant
from mfcli.settings import Settings
from mfcli.synthetic import make_picture

SUFFIXES = {".jpg", ".jpeg"}
SYNTHETIC = 8
"""Different synthetic photos, each of which takes seconds to make."""
WIDTH, HEIGHT = 4032, 3024


def list_photos(arguments: argparse.Namespace, folder: Path) -> list[Path]:
    """Return the JPEGs of the given folder, or synthetic ones."""
    if arguments.folder:
        return sorted(path for path in Path(arguments.folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = [folder / f"{seed}.jpg" for seed in range(2 if arguments.quick else SYNTHETIC)]
    for seed, path in enumerate(paths):
        make_picture(seed, *((1200, 900) if arguments.quick else (WIDTH, HEIGHT))).save(path, quality=90)
    return paths


def prepare_with(predictor: Predictor, path: Path) -> object:
    """Decode and preprocess a photo."""
    return predictor.prepare(make_source(path))


def measure_preparation(predictors: Sequence[Predictor], photos: Sequence[Path]) -> dict[str, float]:
    """Return the median processor time per photo, in ms, of a notebook's way and of each predictor's, in turns."""

    def prepare_as_in_a_notebook(path: Path) -> None:
        with Image.open(path) as photo:
            predictors[0].artifact.plan.apply(photo.convert("RGB"))

    ways: dict[str, Callable[[Path], object]] = {"Pillow, as in a notebook": prepare_as_in_a_notebook}
    for predictor in predictors:
        ways[f"mf, {predictor.settings.values['decode']}"] = partial(prepare_with, predictor)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for path, (name, prepare) in itertools.product(photos, ways.items()):
        started_s = time.process_time()
        prepare(path)
        times[name].append(1000 * (time.process_time() - started_s))
    return {name: statistics.median(values) for name, values in times.items()}


def run_mf(arguments: argparse.Namespace, photos: Sequence[Path], mode: DecodeMode) -> tuple[float, list[str]]:
    """Classify photos in a process of its own; return its seconds and the first classes."""
    command = [sys.executable, "-m", "mfcli", "predict", "-q", "-k", "1", "--format", "csv", "--decode", mode]
    command += ["--model", arguments.model, "--files-from", "-"]
    if arguments.weights:
        command += ["--weights", str(arguments.weights)]
    started_s = time.perf_counter()
    done = subprocess.run(command, input="\n".join(map(str, photos)), capture_output=True, text=True, check=False)
    elapsed_s = time.perf_counter() - started_s
    if done.returncode:
        raise SystemExit(done.stderr)
    return elapsed_s, [row["class_index_1"] for row in csv.DictReader(io.StringIO(done.stdout))]


def compare_runs(arguments: argparse.Namespace, photos: Sequence[Path]) -> None:
    """Run both ways in turns, and print rates, ratio and agreement."""
    times: dict[DecodeMode, list[float]] = {mode: [] for mode in DecodeMode}
    classes: dict[DecodeMode, list[str]] = {}
    for _ in range(arguments.rounds):
        for mode in DecodeMode:
            elapsed_s, classes[mode] = run_mf(arguments, photos, mode)
            times[mode].append(elapsed_s)
    print(f"\n{arguments.model}, {len(photos)} photos, {arguments.rounds} rounds")
    for mode, own in times.items():
        ratio = statistics.median(before / after for before, after in zip(times[DecodeMode.EXACT], own, strict=True))
        rates = sorted(len(photos) / elapsed_s for elapsed_s in own)
        figures = f"{statistics.median(rates):8.1f} photos/s {rates[0]:8.1f} {rates[-1]:8.1f} {ratio:6.2f}"
        print(f"mf predict, {mode:8}{figures}")
    answers = zip(photos, classes[DecodeMode.EXACT], classes[DecodeMode.SCALED], strict=True)
    are_same = {photo: exact == scaled for photo, exact, scaled in answers}
    print(f"the same first class: {sum(are_same.values())} of {len(are_same)} different photos")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="of JPEGs (default: synthetic ones)")
    parser.add_argument("--pictures", type=int, default=500, help="how many photos a run classifies (default 500)")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    parser.add_argument("--model", default="bundled", help="of mf list-models (default bundled)")
    parser.add_argument("--weights", help="a checkpoint of it, or random")
    parser.add_argument("--quick", action="store_true", help="two small photos, one round")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pictures, arguments.rounds = 4, 1
    return arguments


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = list_photos(arguments, folder)
        os.environ["MF_CACHE_DIR"] = str(folder / "cache")
        if arguments.weights == "random":
            arguments.weights = folder / "random.safetensors"
            write_random(arguments.weights, find_variant(arguments.model))
        predictors = [
            load_predictor(
                arguments.model,
                weights=arguments.weights,
                decode=mode,
                isolate=False,  # else another process takes the time that is measured
                settings=Settings.from_environ(),
            )
            for mode in DecodeMode
        ]
        print("processor time from file to tensor, ms per photo")
        for way, ms in measure_preparation(predictors, photos[:50]).items():
            print(f"{way:26}{ms:8.1f}")
        compare_runs(arguments, list(itertools.islice(itertools.cycle(photos), arguments.pictures)))


if __name__ == "__main__":
    main()
