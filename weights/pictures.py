"""The pictures that are trained on and held out, and how they become a model's input."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from mfcli.models.registry import IMAGENET_MEAN, IMAGENET_STD

Samples = list[tuple[str, int]]
"""Paths and class indices."""


class Decoded(Dataset[tuple[Tensor, int]]):
    """The pictures of some files, decoded once and kept as uint8; `transform` is applied at each access."""

    def __init__(self, samples: Samples) -> None:
        self.pictures = [decoded(path) for path, _ in samples]
        self.targets = [target for _, target in samples]
        self.transform = None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = self.transform(Image.fromarray(self.pictures[index]))  # uint8 (3, H, W)
        return torch.from_numpy(np.asarray(picture)), self.targets[index]


def decoded(path: str) -> np.ndarray:
    """Return a file's pixels: uint8 (H, W, 3)."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise SystemExit(f"cannot read {path}: {error}") from error


def split(folder: Path, holdout: int) -> tuple[Samples, Samples, list[str]]:
    """Return training files, held-out files (evenly spaced in each class's sorted names) and class names."""
    try:
        listed = ImageFolder(folder)
    except OSError as error:
        raise SystemExit(f"{folder} is no folder of class folders with pictures: {error}") from error
    of_class: dict[int, Samples] = {}
    for sample in listed.samples:
        of_class.setdefault(sample[1], []).append(sample)
    held, kept = [], []
    for label, samples in of_class.items():
        if len(samples) <= holdout:
            raise SystemExit(f"{listed.classes[label]}: --holdout {holdout} leaves none of {len(samples)} to train on")
        chosen = {round(i * len(samples) / holdout) for i in range(holdout)} if holdout else set()
        held += [sample for i, sample in enumerate(samples) if i in chosen]
        kept += [sample for i, sample in enumerate(samples) if i not in chosen]
    return kept, held, listed.classes


def normalised(pictures: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Return uint8 (N, 3, H, W) as the float32 that the model takes, on the device, channels last in memory."""
    pictures = pictures.to(device, non_blocking=True).float()
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) * 255 for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pictures - mean) / std).contiguous(memory_format=torch.channels_last)
