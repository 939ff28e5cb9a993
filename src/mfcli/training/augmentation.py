"""Pictures as torch gets them to learn from: cropped, turned and changed at random, by timm's transform.

torch and timm take long to import: import this module inside functions only.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mfcli.errors import PictureError, UsageError
from mfcli.inputs.decode import decode
from mfcli.inputs.sources import Source
from mfcli.models.preprocess import PreprocessPlan

AS_IT_IS = -1
"""The epoch of pictures that are not changed."""
Key = tuple[int, int]
"""The epoch and the index of a picture."""

_MIN_CROP = 0.35
"""Share of the area that a random crop has at least."""
_AUGMENT = "rand-m7-mstd0.5-inc1-mmax9"
"""At magnitude 10 timm posterizes to 0 bits, which Pillow refuses."""


class AugmentedPictures(Dataset[Tensor | UsageError]):
    """Normalised pictures, float32 (3, H, W), by epoch and index; the same key always gives the same tensor.

    Of a picture that can no longer be read it gives the error: torch would make a text with a traceback of one that is
    raised in another process.

    Args:
        sources: the pictures.
        plan: the preprocessing.
        seed: another one gives other changes.
    """

    def __init__(self, sources: Sequence[Source], plan: PreprocessPlan, seed: int) -> None:
        self._sources, self._plan, self._seed = sources, plan, seed
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

    def __getitem__(self, key: Key) -> Tensor | UsageError:
        epoch, index = key
        source, is_changed = self._sources[index], epoch != AS_IT_IS
        try:
            with source.open() as file:  # a crop of half the side is not enlarged
                picture = decode(file, least_side=2 * max(self._plan.crop_size) if is_changed else None).rgb
        except PictureError as error:
            return UsageError(f"{source.shown_name} can no longer be read: {error.message}", "put it back")
        if not is_changed:
            return torch.from_numpy(self._plan.apply(picture))
        seed_generators(self._seed, epoch, index)
        pixels: Tensor = self._transform(picture)
        return pixels


def seed_generators(*numbers: int) -> None:
    """Seed the generators that timm and torch draw from."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_loader(
    pictures: AugmentedPictures, batches: list[list[Key]], processes: int
) -> "DataLoader[Tensor | UsageError]":
    """Return what loads the batches that are in the list when it is iterated over, or the first error in each.

    Args:
        pictures: the pictures.
        batches: the keys of each.
        processes: that load; 0 for this one.
    """
    more: dict[str, Any] = {"multiprocessing_context": "spawn", "persistent_workers": True} if processes else {}
    return DataLoader(pictures, batch_sampler=batches, num_workers=processes, collate_fn=_stack, **more)


def _stack(loaded: Sequence[Tensor | UsageError]) -> Tensor | UsageError:
    error = next((own for own in loaded if isinstance(own, UsageError)), None)
    return error or torch.stack([own for own in loaded if isinstance(own, Tensor)])
