"""Measure what a picture costs in processor time: to decode and resize it, to classify it, and to write its row.

    python benchmarks/cost.py --model bundled --model caformer_s18

Photos are synthetic JPEGs, and all models but the bundled one have random weights, which take as long as trained ones.
The table has milliseconds of one core, each the median of several rounds; then what `mf predict` takes in all for 100
photos. docs/billion.md computes with them what a large job takes; benchmarks/plan.py measures mf plan, and
benchmarks/stores.py the requests to an object store.
"""

import argparse
import io
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mfcli.inference.model_loading import load_predictor
from mfcli.inference.predictor import Predictor
from mfcli.inputs.codecs import DecodeMode
from mfcli.inputs.pictures import make_source
from mfcli.models.checkpoint import write_random
from mfcli.models.registry import find_variant
from mfcli.outputs import open_writer
from mfcli.outputs.files import open_text
from mfcli.outputs.writer import FormatName
from mfcli.runs import Summary
from mfcli.settings import Settings
from mfcli.synthetic import make_picture, write_jpegs

SIZES = {"500x375": (500, 375), "1920x1080": (1920, 1080), "4032x3024": (4032, 3024)}
BATCH = 16
ROWS = 2000
WHOLE = 100


def measure(title: str, work: Callable[[], object], rounds: int, pictures: int = 1) -> None:
    """Print the median processor time per picture; the first round does not count."""
    times = []
    for _ in range(rounds + 1):
        started_s = time.process_time()
        work()
        times.append(1000 * (time.process_time() - started_s) / pictures)
    print(f"{title:40}{statistics.median(times[1:]):10.3f}", flush=True)


def measure_decoding(predictors: dict[DecodeMode, Predictor], folder: Path, sizes: list[str], rounds: int) -> None:
    """Print the cost of a photo of each size, from file to tensor."""
    for title in sizes:
        path = folder / f"{title}.jpeg"
        make_picture(0, *SIZES[title]).save(path, quality=90)
        for mode, predictor in predictors.items():
            source = make_source(path)
            measure(f"decode and resize {title}, {mode}", lambda: predictor.prepare(source), rounds)  # noqa: B023


def measure_computing(name: str, predictor: Predictor, rounds: int) -> None:
    """Print the cost of a picture in the engine."""
    batch = np.zeros((BATCH, 3, *predictor.artifact.plan.crop_size), np.float32)
    measure(f"compute {name}", lambda: predictor.engine.logits(batch), rounds, BATCH)


def measure_writing(predictor: Predictor, rounds: int) -> None:
    """Print the cost of a row."""
    result = predictor.predict(make_picture(0))

    def write(format: FormatName) -> None:
        stream = open_text(io.BytesIO())
        writer = open_writer(format, stream, compact=True)
        writer.begin(predictor.run_info)
        for _ in range(ROWS):
            writer.write(result)
        writer.end(Summary(ROWS, ROWS, 0, complete=True))

    for format in (FormatName.JSONL, FormatName.PARQUET):
        measure(f"write a row of {format}", lambda: write(format), rounds, ROWS)  # noqa: B023


def measure_whole(model: str, folder: Path) -> None:
    """Print the cost of a photo in mf predict, all of its processes taken together, without its start."""
    write_jpegs(folder, WHOLE)
    command = [sys.executable, "-m", "mfcli", "predict", "-q", "--model", model, "-o", "answers.parquet", "--overwrite"]
    if model != "bundled":
        command += ["--weights", f"{model}.safetensors"]
    seconds = []
    for pattern in ("0000[01].jpg", "*.jpg"):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, pattern], cwd=folder, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print(f"{'all of it, 500x375, exact':40}{1000 * (seconds[1] - seconds[0]) / (WHOLE - 2):10.3f}", flush=True)


def load(name: str, folder: Path, decode: DecodeMode = DecodeMode.EXACT) -> Predictor:
    """Load a model for one thread, all but the bundled one with random weights."""
    weights = None
    if name != "bundled":
        weights = folder / f"{name}.safetensors"
        if not weights.exists():
            write_random(weights, find_variant(name))
    settings = Settings.from_environ()
    return load_predictor(name, weights=weights, decode=decode, threads=1, isolate=False, settings=settings)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="of mf list-models (default bundled and caformer_s18)")
    parser.add_argument("--rounds", type=int, default=9, help="(default 9)")
    parser.add_argument("--quick", action="store_true", help="one small photo, one round")
    arguments = parser.parse_args()
    rounds, sizes = (1, ["500x375"]) if arguments.quick else (arguments.rounds, list(SIZES))
    models = ["bundled"] if arguments.quick else arguments.model or ["bundled", "caformer_s18"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MF_CACHE_DIR"] = str(folder / "cache")
        print(f"{'':40}{'core ms':>10}")
        for number, model in enumerate(models):
            predictors = {mode: load(model, folder, mode) for mode in DecodeMode}
            print(f"{model}, {predictors[DecodeMode.EXACT].artifact.plan.resize_shorter_side} pixels")
            measure_decoding(predictors, folder, sizes, rounds)
            measure_computing(model, predictors[DecodeMode.EXACT], rounds)
            measure_whole(model, folder)
            if number == 0:
                measure_writing(predictors[DecodeMode.EXACT], rounds)


if __name__ == "__main__":
    main()
