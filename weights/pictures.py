"""Training and held-out pictures, and the transforms that turn them into the model's input."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from mfcli.models.registry import IMAGENET_MEAN, IMAGENET_STD

Samples = list[tuple[str, int]]
"""Paths and class indices."""
Pixels = NDArray[np.uint8]
Transform = Callable[[Image.Image], Pixels | Tensor]
"""From a picture to uint8 (3, H, W); some of timm's give a tensor."""


class DecodedPictures(Dataset[tuple[Tensor, int]]):
    """Decoded pictures, uint8 (H, W, 3); `transform` is applied at each access and may be replaced."""

    def __init__(self, pictures: Sequence[Pixels], targets: list[int], transform: Transform) -> None:
        self.pictures = pictures
        self.targets = targets
        self.transform = transform

    @classmethod
    def read(cls, samples: Samples, transform: Transform) -> Self:
        """Decode files once."""
        return cls([decode_picture(path) for path, _ in samples], [target for _, target in samples], transform)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.as_tensor(self.transform(Image.fromarray(self.pictures[index]))), self.targets[index]


def create_eval_transform(size: int, crop_pct: float) -> Transform:
    """Return timm's evaluation transform without the normalisation."""
    transform: Transform = create_transform(size, crop_pct=crop_pct, interpolation="bicubic", use_prefetcher=True)
    return transform


def decode_picture(path: str | BinaryIO) -> Pixels:
    """Return the pixels of a file: uint8 (H, W, 3)."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise SystemExit(f"cannot read {path}: {error}") from error


def split(folder: Path, holdout: int) -> tuple[Samples, Samples, list[str]]:
    """Return training files, held-out files (evenly spaced among each class's sorted names) and class names."""
    try:
        listed = ImageFolder(folder)
    except OSError as error:
        raise SystemExit(f"{folder} is not a folder of class folders with pictures: {error}") from error
    of_class: dict[int, Samples] = {}
    for sample in listed.samples:
        of_class.setdefault(sample[1], []).append(sample)
    held, kept = [], []
    for label, samples in of_class.items():
        if len(samples) <= holdout:
            raise SystemExit(f"{listed.classes[label]}: --holdout {holdout} leaves none of {len(samples)} for training")
        chosen = {round(i * len(samples) / holdout) for i in range(holdout)} if holdout else set()
        held += [sample for i, sample in enumerate(samples) if i in chosen]
        kept += [sample for i, sample in enumerate(samples) if i not in chosen]
    return kept, held, listed.classes


@cache
def constant(values: tuple[float, ...], device: torch.device | str) -> Tensor:
    """Return one value per channel, (C, 1, 1); making it anew each time would wait for the device."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


def normalise(pictures: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Return uint8 (N, 3, H, W) as the model's float32 input, on the device, in channels-last memory."""
    pictures = pictures.to(device, non_blocking=True).float()
    mean, std = (constant(values, device) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pictures - mean) / std).contiguous(memory_format=torch.channels_last)
