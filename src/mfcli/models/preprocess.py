"""Preprocessing: from an upright RGB picture to the normalised float32 tensor that a model expects.

timm's `create_transform` is the reference: the plans are data that a script made from the transforms that timm builds.
A `PreprocessPlan` needs only Pillow and NumPy and gives bit-identical results.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mfcli.errors import FailureCode, ModelError, PictureError
from mfcli.models.registry import Variant

PLANS_FILE = Path(__file__).parent / "data" / "preprocess.json"
"""The plan of every variant; `scripts/model_data.py` wrote it."""


@dataclass(frozen=True)
class PreprocessPlan:
    """The parameters of resizing, cropping and normalising a picture.

    Attributes:
        resize_shorter_side: pixels of the shorter side after resizing; the longer side keeps the ratio, rounded down.
        crop_size: (height, width) of the centre crop in pixels.
        interpolation: Pillow's name of the resampling filter, in lower case; always with antialiasing.
        mean: per channel, subtracted from values scaled to 0..1.
        std: per channel, divided by afterwards.
    """

    resize_shorter_side: int
    crop_size: tuple[int, int]
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_json(cls, text: str) -> "PreprocessPlan":
        """Read the plan's fields from a JSON object.

        Raises:
            ModelError: the text is not a plan of this version.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            plan = cls(
                resize_shorter_side=int(fields["resize_shorter_side"]),
                crop_size=(int(fields["crop_size"][0]), int(fields["crop_size"][1])),
                interpolation=str(fields["interpolation"]),
                mean=_to_floats(fields["mean"]),
                std=_to_floats(fields["std"]),
            )
            Image.Resampling[plan.interpolation.upper()]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ModelError(f"not a preprocessing plan: {text[:80]!r}") from error
        return plan

    def compute_resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) in pixels after the resize step."""
        short, long = min(width, height), max(width, height)
        long = int(self.resize_shorter_side * long / short)
        return (self.resize_shorter_side, long) if width <= height else (long, self.resize_shorter_side)

    def apply(self, picture: Image.Image, max_pixels: int | None = None) -> NDArray[np.float32]:
        """Turn an RGB picture into a normalised float32 array of shape (3, H, W), C-contiguous.

        Args:
            picture: mode RGB, any size.
            max_pixels: the largest number of pixels that the resize step may produce; None for no limit.

        Raises:
            PictureError: too_large, if the resized picture (of a very long strip) would exceed max_pixels.
        """
        size = self.compute_resized_size(*picture.size)
        if max_pixels is not None and size[0] * size[1] > max_pixels:
            raise PictureError(
                FailureCode.TOO_LARGE,
                f"{picture.width}x{picture.height} would be resized to {size[0]}x{size[1]}, "
                f"which exceeds max_pixels={max_pixels}",
            )
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling[self.interpolation.upper()])
        pixels = np.asarray(self._crop_centre(picture))
        out = np.empty((3, *pixels.shape[:2]), np.float32)
        for channel in range(3):
            # all levels are in range; with mode="raise" NumPy would buffer the output
            np.take(self._lookup[channel], pixels[..., channel], out=out[channel], mode="clip")
        return out

    def _crop_centre(self, picture: Image.Image) -> Image.Image:
        height, width = self.crop_size
        left = round((picture.width - width) / 2)
        top = round((picture.height - height) / 2)
        return picture.crop((left, top, left + width, top + height))

    @cached_property
    def _lookup(self) -> NDArray[np.float32]:
        """The normalised values of the 256 levels, float32 (3, 256), computed in torchvision's order of operations."""
        levels = np.arange(256, dtype=np.float32) / np.float32(255)
        mean, std = (np.array(v, np.float32)[:, None] for v in (self.mean, self.std))
        return (levels - mean) / std


def make_preprocess_plan(variant: Variant) -> PreprocessPlan:
    """Return a variant's plan, as timm builds it; `scripts/model_data.py` wrote them down."""
    return PreprocessPlan.from_json(json.dumps(json.loads(PLANS_FILE.read_bytes())[variant.name]))


def _to_floats(values: Any) -> tuple[float, float, float]:
    """Return three floats; of float32 values, the shortest decimals that round to them."""
    first, second, third = (float(np.format_float_positional(np.float32(float(v)), unique=True)) for v in values)
    return first, second, third
