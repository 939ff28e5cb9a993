"""A variant small enough that a test makes its checkpoints in a moment, 90 kB each."""

import dataclasses
import hashlib
import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray

from mfcli.models.parameters import parameter_shapes
from mfcli.models.registry import WeightsSource, find_variant
from mfcli.settings import HUB

NAME = "poolformerv2_s12"
PAPER, TIMM = f"/sail/dl/resolve/main/poolformerv2/{NAME}.pth", f"/timm/{NAME}/resolve/main/model.safetensors"
_ROW = find_variant(NAME)
_SMALL = dataclasses.replace(_ROW.architecture, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
TINY = dataclasses.replace(
    _ROW,
    architecture=_SMALL,
    params=sum(int(np.prod(shape)) for shape in parameter_shapes(_SMALL, 1000).values()),
    sources=(WeightsSource(HUB + PAPER), WeightsSource(HUB + TIMM)),
)


def sha256(data: bytes) -> str:
    """Return a digest in hex."""
    return hashlib.sha256(data).hexdigest()


def make_pth(seed: int = 0, num_classes: int = 1000) -> bytes:
    """Return a .pth file of the small variant."""
    file = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in _draw(seed, num_classes).items()}, file)
    return file.getvalue()


def make_safetensors(
    seed: int = 0, num_classes: int = 1000, others: Mapping[str, NDArray[Any]] = MappingProxyType({})
) -> bytes:
    """Return a .safetensors file of the small variant, with other tensors added or in the place of its own."""
    data: bytes = safetensors.numpy.save(_draw(seed, num_classes) | dict(others))
    return data


def _draw(seed: int, num_classes: int) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    shapes = parameter_shapes(_SMALL, num_classes)
    return {name: random.standard_normal(shape, np.float32) * np.float32(0.1) for name, shape in shapes.items()}
