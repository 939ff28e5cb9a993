"""Measure how often --decode scaled changes the first class, and what each rule for its size costs.

Photos are enlarged to 2, 3 and 4 megapixels in turn, or put together to mosaics of 4x4, whose pixels are those of a
camera. Each is decoded exactly, and at a fraction that keeps at least N times the pixels that it is resized to, along
each side, or half as much again at 1/8; `mf` keeps 2. As a yardstick, the exact tensor is changed by one level at
random.

    python benchmarks/scaled.py FOLDER --pictures 1000
    python benchmarks/scaled.py FOLDER --pictures 1000 --mosaics

The columns: processor time from file to tensor, the same first class as exact, and the same among photos whose first
probability is 0.5 or more.
"""

import argparse
import io
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mfcli.inference.model_loading import load_predictor
from mfcli.inference.predictor import Predictor
from mfcli.inputs.decode import decode
from mfcli.synthetic import write_jpegs

SUFFIXES = {".jpg", ".jpeg"}
MEGAPIXELS = (2, 3, 4)
TILES = 4
TILE = (500, 375)
CLEAR = 0.5
QUALITY = 90


def enlarge(path: Path, megapixels: int) -> Image.Image:
    """Return a photo with at least so many pixels."""
    with Image.open(path) as photo:
        scale = (megapixels * 1e6 / (photo.width * photo.height)) ** 0.5
        size = (round(photo.width * scale), round(photo.height * scale))
        return photo.convert("RGB").resize(size, Image.Resampling.LANCZOS) if scale > 1 else photo.convert("RGB")


def make_mosaic(paths: Sequence[Path]) -> Image.Image:
    """Return photos side by side, 3 megapixels together."""
    mosaic = Image.new("RGB", (TILES * TILE[0], TILES * TILE[1]))
    for number, path in enumerate(paths):
        with Image.open(path) as photo:
            tile = photo.convert("RGB").resize(TILE, Image.Resampling.LANCZOS)
        mosaic.paste(tile, (number % TILES * TILE[0], number // TILES * TILE[1]))
    return mosaic


def make_jpeg(number: int, paths: Sequence[Path], mosaics: bool) -> bytes:
    """Return the photo of this number."""
    choose = random.Random(number)
    picture = (
        make_mosaic(choose.sample(paths, TILES**2))
        if mosaics
        else enlarge(paths[number], MEGAPIXELS[number % len(MEGAPIXELS)])
    )
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def prepare(predictor: Predictor, data: bytes, scale: int | None) -> tuple[NDArray[np.float32], float]:
    """Return the tensor of a photo, and the processor time in ms; `scale` is None for exact decoding."""
    plan = predictor.artifact.plan
    started_s = time.thread_time()
    least_side = None if scale is None else scale * plan.resize_shorter_side
    picture = decode(io.BytesIO(data), least_side=least_side)
    pixels = plan.apply(picture.stored, turn=picture.turn, full_size=(picture.width, picture.height))
    return pixels, 1000 * (time.thread_time() - started_s)


def add_noise(predictor: Predictor, pixels: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Return a tensor of which every value is changed by one level, up or down."""
    level = 1 / 255 / np.array(predictor.artifact.plan.std, np.float32)[:, None, None]
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), pixels.shape)
    return np.asarray(pixels + signs * level)


def classify(
    predictor: Predictor, tensors: Sequence[NDArray[np.float32]]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the first class of each tensor, and its probability."""
    logits = np.concatenate([predictor.engine.logits(tensor[None]) for tensor in tensors])
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    return probs.argmax(1), probs.max(1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="of photos (default: synthetic ones)")
    parser.add_argument("--pictures", type=int, default=1000, help="(default 1000)")
    parser.add_argument("--mosaics", action="store_true", help="put photos together instead of enlarging them")
    parser.add_argument("--scales", type=int, nargs="+", default=[2, 3, 4], metavar="N", help="(default 2 3 4)")
    parser.add_argument("--model", default="bundled", help="of mf list-models (default bundled)")
    parser.add_argument("--quick", action="store_true", help="16 small synthetic photos")
    arguments = parser.parse_args()
    predictor = load_predictor(arguments.model, threads=1)
    with tempfile.TemporaryDirectory() as name:
        if arguments.quick or not arguments.folder:
            paths = write_jpegs(Path(name), 16)
        else:
            paths = [path for path in Path(arguments.folder).rglob("*") if path.suffix.lower() in SUFFIXES]
        random.Random(0).shuffle(paths)
        count = min(arguments.pictures, len(paths))
        ways = {"exact": None, **{f"scaled {scale}": scale for scale in arguments.scales}}
        found: dict[str, list[tuple[NDArray[np.float32], float]]] = {way: [] for way in [*ways, "noise"]}
        for number in range(count):
            data = make_jpeg(number, paths, arguments.mosaics)
            for way, scale in ways.items():
                found[way].append(prepare(predictor, data, scale))
            found["noise"].append((add_noise(predictor, found["exact"][-1][0], number), 0.0))
    exact, probs = classify(predictor, [tensor for tensor, _ in found["exact"]])
    clear = probs >= CLEAR
    print(f"{count} photos, of which {clear.sum()} have a first probability of {CLEAR} or more")
    print(f"{'':10}{'ms':>8}{'same':>8}{'clear':>8}")
    for way, results in found.items():
        same = classify(predictor, [tensor for tensor, _ in results])[0] == exact
        ms = np.median([ms for _, ms in results])
        print(f"{way:10}{ms:8.1f}{100 * same.mean():7.1f}%{100 * same[clear].mean():7.1f}%")


if __name__ == "__main__":
    main()
