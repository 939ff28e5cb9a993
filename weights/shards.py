"""Pack a folder of class folders into a few files for a training on another machine, and read them there.

    python weights/shards.py tiny-imagenet-200/train shards

A shard is a compressed NumPy archive of the original JPEG bytes: nothing is decoded or encoded again, and the headers,
which all files share, compress to nothing. Tiny ImageNet's 185 MiB become three files of 40 MiB. The held-out pictures
are those of `pictures.split`, and are marked.
"""

import argparse
import io
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pictures import decode_picture, split
from torch import Tensor

from mfcli.files import write_atomically


@dataclass(frozen=True)
class PackedPictures:
    """Decoded pictures of one size, all in memory.

    Attributes:
        pictures: uint8 (N, 3, H, W).
        targets: class indices, int64 (N,).
        held_out: whether a picture is kept out of training, bool (N,).
        classes: names, in head order.
    """

    pictures: Tensor
    targets: Tensor
    held_out: Tensor
    classes: list[str]


def pack(folder: Path, output: Path, holdout: int, count: int) -> list[Path]:
    """Write the pictures of a folder of class folders as shards; return their paths.

    Args:
        folder: of class folders.
        output: the folder to write to.
        holdout: pictures of each class to mark as held out.
        count: number of shards, of about the same size each.
    """
    kept, held, classes = split(folder, holdout)
    samples = [(path, target, samples is held) for samples in (kept, held) for path, target in samples]
    paths = []
    for number in range(count):
        files = [Path(path).read_bytes() for path, _, _ in samples[number::count]]
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            data=np.frombuffer(b"".join(files), np.uint8),
            sizes=np.array([len(file) for file in files]),
            targets=np.array([target for _, target, _ in samples[number::count]]),
            held_out=np.array([is_held for _, _, is_held in samples[number::count]]),
            classes=np.array(classes),
        )
        paths.append(output / f"{number + 1}-of-{count}.npz")
        write_atomically(paths[-1], buffer.getvalue())
    return paths


def read_shards(folder: Path) -> PackedPictures:
    """Decode the pictures of all shards in a folder.

    Raises:
        SystemExit: a shard is missing, or the pictures are of several sizes.
    """
    paths = sorted(folder.glob("*-of-*.npz"))
    count = int(paths[0].stem.rpartition("-")[2]) if paths else 1
    if missing := {f"{number + 1}-of-{count}.npz" for number in range(count)} - {path.name for path in paths}:
        raise SystemExit(f"{folder} has no {min(missing)}: python weights/shards.py DATA {folder}")
    shards = [dict(np.load(path)) for path in paths]
    files = itertools.chain.from_iterable(_cut(shard["data"], shard["sizes"]) for shard in shards)
    with ThreadPoolExecutor() as pool:
        decoded = list(pool.map(decode_picture, files))
    if len(sizes := {pixels.shape for pixels in decoded}) > 1:
        raise SystemExit(f"{folder} has pictures of {len(sizes)} sizes; all must have the same")
    return PackedPictures(
        torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(np.concatenate([shard["targets"] for shard in shards])),
        torch.from_numpy(np.concatenate([shard["held_out"] for shard in shards])),
        shards[0]["classes"].tolist(),
    )


def _cut(data: NDArray[np.uint8], sizes: NDArray[np.int64]) -> list[io.BytesIO]:
    ends = np.cumsum(sizes)
    return [io.BytesIO(data[end - size : end].tobytes()) for end, size in zip(ends, sizes, strict=True)]


def main(argv: list[str] | None = None) -> None:
    """Pack, and print the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of class folders")
    parser.add_argument("output", type=Path, help="folder of the shards")
    parser.add_argument("--holdout", type=int, default=25, help="pictures of each class to keep out of training")
    parser.add_argument("--shards", type=int, default=3, help="how many files")
    options = parser.parse_args(argv)
    for path in pack(options.data, options.output, options.holdout, options.shards):
        print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
