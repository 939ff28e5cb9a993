"""Weights and pictures that are the same on every machine and for all time: a hash of their name and position."""

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image


def uniform(name: str, count: int) -> NDArray[np.float64]:
    """Return `count` float64 values in [0, 1): splitmix64 of the position, seeded by the name."""
    with np.errstate(over="ignore"):
        x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x += np.uint64(zlib.crc32(name.encode())) << np.uint64(20)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) / 2.0**53


def values(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return float64 values of mean 0 and variance 1."""
    return (uniform(name, int(np.prod(shape))).reshape(shape) - 0.5) * 12**0.5


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Fill a model's parameters by name, at scales that keep activations near 1; returns the model."""
    state = {}
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        filled = values(name, shape)
        if name.endswith("random_matrix"):
            filled = uniform(name, filled.size).reshape(shape)
            filled /= filled.sum(axis=-1, keepdims=True)
        elif name.endswith("bias"):
            filled *= 0.1
        elif len(shape) == 1:
            filled = 1 + 0.1 * filled
        else:
            filled *= np.prod(shape[1:]) ** -0.5
        state[name] = torch.from_numpy(filled.astype(np.float32))
    model.load_state_dict(state)
    return model


def pixels(batch: int, size: int) -> torch.Tensor:
    """Return normalised pictures, float32 (batch, 3, size, size)."""
    return torch.from_numpy(values(f"pixels{size}", (batch, 3, size, size)).astype(np.float32))


def picture(width: int, height: int, mode: str = "RGB", name: str = "picture") -> Image.Image:
    """Return a picture of noise over a gradient, so that every resampling shows."""
    noise = uniform(name, width * height * 3).reshape(height, width, 3)
    ramp = np.linspace(0, 1, width)[None, :, None] * np.linspace(1, 0.2, height)[:, None, None]
    return Image.fromarray(np.uint8(255 * (0.5 * noise + 0.5 * ramp)), "RGB").convert(mode)
