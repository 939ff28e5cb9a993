"""Pictures as torch gets them to learn from: cropped, turned and changed at random, by timm's transform.

torch and timm take long to import: import this module inside functions only.
"""

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mfcli.models.preprocess import PreprocessPlan
from mfcli.training.decoding import Lesson

_MIN_CROP = 0.35
"""Share of the area that a random crop has at least."""
_AUGMENT = "rand-m7-mstd0.5-inc1-mmax9"
"""At magnitude 10 timm posterizes to 0 bits, which Pillow refuses."""


class AugmentedPictures(Dataset[tuple[int, Tensor]]):
    """Decoded pictures, by themselves: their indices, and normalised pixels, float32 (3, H, W).

    The same picture is changed in the same way whenever it comes in the same epoch; what is held out is not changed.

    Args:
        plan: the preprocessing.
        seed: another one gives other changes.
    """

    def __init__(self, plan: PreprocessPlan, seed: int) -> None:
        self._seed = seed
        self._transform = create_transform(
            (3, *plan.crop_size),
            is_training=True,
            scale=(_MIN_CROP, 1.0),
            color_jitter=0.0,  # RandAugment changes colours
            auto_augment=_AUGMENT,
            interpolation=plan.interpolation,
            mean=plan.mean,
            std=plan.std,
        )

    def __getitem__(self, lesson: Lesson) -> tuple[int, Tensor]:
        epoch, index, picture = lesson
        if isinstance(picture, np.ndarray):
            return index, torch.from_numpy(picture)
        seed_generators(self._seed, epoch, index)
        return index, self._transform(picture)


def seed_generators(*numbers: int) -> None:
    """Seed the generators that timm and torch draw from."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_loader(
    pictures: AugmentedPictures, batches: Iterable[list[Lesson]], processes: int
) -> "DataLoader[tuple[int, Tensor]]":
    """Return what yields, of each batch, the indices, int64 (N,), and the pixels, float32 (N, 3, H, W).

    Args:
        pictures: augments them.
        batches: of decoded pictures; each pass over the loader iterates over them, in this process.
        processes: that augment; 0 for this one.
    """
    more: dict[str, Any] = {"multiprocessing_context": "spawn", "persistent_workers": True} if processes else {}
    return DataLoader(pictures, batch_sampler=batches, num_workers=processes, **more)
