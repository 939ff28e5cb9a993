"""Measure `mf predict` on a GPU, from files to rows, against timm's inference loop and the machine's cores.

For each model and each size of photo, in turns:

    decoding            one process per core decodes and preprocesses as mf does, and computes nothing: the limit
    nvJPEG              torchvision.io.decode_jpeg on the device, in batches, then resizing there
    timm, DataLoader    create_loader with a worker per core and its prefetcher, as in timm's inference.py
    mf predict          a whole process: python -m mfcli predict FILES --device cuda --precision bf16
    mf predict, scaled  the same with --decode scaled, for large photos

All have the same random weights. The table shows medians in photos per second, the ratio to timm's loop and the share
of the decoding limit. timm loads before the clock starts; for mf, start-up is subtracted, as in batch.py. nvJPEG has
another decoder and other filters than Pillow, so that its pixels differ; it only shows what a decoder could gain.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --models caformer_s18 --sizes 500x375 --precision fp32 --rounds 3
    python benchmarks/gpu.py --device cpu --precision fp32 --quick
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from batch import create_timm_model, measure_mf
from mfcli.models.preprocess import make_preprocess_plan
from mfcli.models.registry import Variant, find_variant
from mfcli.settings import usable_cores
from mfcli.synthetic import make_picture

TIMM, LIMIT = "timm, DataLoader", "decoding"
LARGE = 2**21
"""Pixels from which a photo is large."""
FEWER_LARGE = 16
"""A large photo takes about as long to decode as so many small ones."""
DIFFERENT = 16
"""Synthetic photos of each size, which are repeated."""

Measure = Callable[[Sequence[str]], tuple[float, NDArray[Any]]]
"""Takes files; returns photos per second and the first classes, or nothing."""


@dataclass
class Photos:
    """A map-style dataset as timm's loader wants it, which sets the transform; a photo's target is 0."""

    files: Sequence[str]
    transform: Any = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.open(self.files[index]).convert("RGB")), 0


def prepare(variant: Variant, file: str) -> None:
    """Decode and preprocess a photo."""
    with Image.open(file) as photo:
        make_preprocess_plan(variant).apply(photo.convert("RGB"))


def write_photo(folder: Path, width: int, height: int, seed: int) -> str:
    """Write a synthetic photo; return its path."""
    path = folder / f"{width}x{height}-{seed}.jpg"
    make_picture(seed, width, height).save(path, quality=90)
    return str(path)


def time_rate(run: Callable[[], NDArray[Any]], files: Sequence[str]) -> tuple[float, NDArray[Any]]:
    """Return photos per second of a run over the files, and what it returns."""
    started_s = time.perf_counter()
    answer = run()
    return len(files) / (time.perf_counter() - started_s), answer


def measure_decoding(variant: Variant, pool: ProcessPoolExecutor) -> Measure:
    """Return what measures the rate at which all cores decode."""

    def run(files: Sequence[str]) -> NDArray[Any]:
        for _ in pool.map(partial(prepare, variant), files, chunksize=8):
            pass
        return np.empty(0)

    return lambda files: time_rate(partial(run, files), files)


def measure_nvjpeg(variant: Variant, device: str, batch_size: int) -> Measure:
    """Return what measures decoding and resizing on the device, without computing anything with the pixels."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms.v2.functional import center_crop, resize

    side = variant.input_size[-1]
    resized = round(side / variant.crop_pct)

    def run(files: Sequence[str]) -> NDArray[Any]:
        for start in range(0, len(files), batch_size):
            data = [read_file(file) for file in files[start : start + batch_size]]
            decoded: Any = decode_jpeg(data, mode=ImageReadMode.RGB, device=device)
            pixels = torch.stack([center_crop(resize(photo, [resized]), [side, side]) for photo in decoded])
            pixels.sum().item()  # waits for the device
        return np.empty(0)

    return lambda files: time_rate(partial(run, files), files)


def measure_timm(model: Any, arguments: argparse.Namespace) -> Measure:
    """Return what measures timm's loop; a loader's workers are kept for the next round."""
    import timm
    import torch

    device = torch.device(arguments.device)
    config = timm.data.resolve_model_data_config(model)
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    model = model.to(device, dtype).to(memory_format=torch.channels_last)
    loaders: dict[int, Any] = {}

    def run(files: Sequence[str]) -> NDArray[Any]:
        found = []
        with torch.inference_mode():
            for pixels, _ in loaders[len(files)]:
                logits = model(pixels.contiguous(memory_format=torch.channels_last))
                found.append(logits.float().softmax(-1).topk(5).indices[:, 0].cpu().numpy())
        return np.concatenate(found)

    def measure(files: Sequence[str]) -> tuple[float, NDArray[Any]]:
        if len(files) not in loaders:
            loaders[len(files)] = timm.data.create_loader(
                Photos(files),
                batch_size=arguments.batch_size,
                num_workers=arguments.workers,
                device=device,
                img_dtype=dtype,
                pin_memory=device.type == "cuda",
                **config,
            )
        return time_rate(partial(run, files), files)

    return measure


def measure_first_class(measure: Callable[..., tuple[float, NDArray[Any]]], files: Sequence[str]) -> Any:
    """Measure mf; return photos per second and the first classes."""
    rate, answer = measure(files)
    return rate, answer[:, 0]


def list_rows(
    variant: Variant, is_large: bool, arguments: argparse.Namespace, folder: Path, pool: ProcessPoolExecutor
) -> Iterator[tuple[str, Measure]]:
    """Yield the rows of a table: their names, and what measures them."""
    from safetensors.torch import save_file

    model, _ = create_timm_model(str(variant.timm_name))
    weights = folder / f"{variant.name}.safetensors"
    save_file(model.state_dict(), weights)
    yield LIMIT, measure_decoding(variant, pool)
    yield "nvJPEG", measure_nvjpeg(variant, arguments.device, arguments.batch_size)
    yield TIMM, measure_timm(model, arguments)
    options = ("--device", arguments.device, "--precision", arguments.precision, "--workers", str(arguments.workers))
    mf = partial(measure_mf, variant.name, weights, arguments.batch_size, *options)
    yield "mf predict", partial(measure_first_class, mf())
    if is_large:
        yield "mf predict, scaled", partial(measure_first_class, mf("--decode", "scaled"))


def measure_rounds(rows: dict[str, Measure], files: Sequence[str], rounds: int) -> dict[str, NDArray[Any]]:
    """Warm all rows up, then measure them in turns; return photos per second by row and round."""
    answers: dict[str, NDArray[Any]] = {}
    able = dict(rows)
    for name, measure in rows.items():
        try:
            _, answers[name] = measure(files)
        except (RuntimeError, OSError) as error:
            print(f"left out: {name}: {str(error).partition(chr(10))[0]}", file=sys.stderr)
            del able[name]
    rates: dict[str, list[float]] = {name: [] for name in able}
    for _, (name, measure) in itertools.product(range(rounds), able.items()):
        rates[name].append(measure(files)[0])
    for name, answer in answers.items():
        if len(answer) and name != TIMM:
            print(f"{name}: the same first class as timm's for {np.mean(answer == answers[TIMM]):.1%}", file=sys.stderr)
    return {name: np.array(values) for name, values in rates.items()}


def print_table(rates: dict[str, NDArray[Any]]) -> None:
    """Print a line for each row."""
    print(f"{'':20}{'photos/s':>9}{'min':>9}{'max':>9}{'to timm':>9}{'of limit':>9}")
    for name, own in rates.items():
        ratios = [statistics.median(own / rates[other]) for other in (TIMM, LIMIT)]
        print(f"{name:20}{statistics.median(own):9.1f}{own.min():9.1f}{own.max():9.1f}{ratios[0]:9.2f}{ratios[1]:9.2f}")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["caformer_s18", "caformer_b36"], help="that timm has too")
    parser.add_argument("--sizes", nargs="+", default=["500x375", "4032x3024"], help="of the photos, in pixels")
    parser.add_argument("--photos", type=int, default=6000, help=f"in a run; large ones 1/{FEWER_LARGE} (default 6000)")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=usable_cores(), help="that decode (default: one per core)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a small model, four smaller photos, one round")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.sizes, arguments.photos = ["poolformerv2_s12"], ["1800x1200"], 64
        arguments.rounds, arguments.batch_size, arguments.workers = 1, 2, 2
    return arguments


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(arguments.workers) as pool:
        folder = Path(name)
        for size, model in itertools.product(arguments.sizes, arguments.models):
            width, height = map(int, size.split("x"))
            is_large = width * height > LARGE
            count = arguments.photos // (FEWER_LARGE if is_large else 1)
            files = list(pool.map(partial(write_photo, folder, width, height), range(min(count, DIFFERENT))))
            files = list(itertools.islice(itertools.cycle(files), count))
            rows = dict(list_rows(find_variant(model), is_large, arguments, folder, pool))
            rates = measure_rounds(rows, files, arguments.rounds)
            print(f"\n{model}, {count} photos of {size}, {arguments.precision} on {arguments.device}")
            print_table(rates)


if __name__ == "__main__":
    main()
