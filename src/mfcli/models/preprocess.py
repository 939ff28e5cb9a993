"""Preprocessing: from an upright RGB picture to the normalised float32 tensor that a model expects.

timm's evaluation transform is the reference: `create_transform` with crop_mode "center" and a square input size. A
`PreprocessPlan` needs only Pillow and NumPy and gives bit-identical results; the tests compare them.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mfcli.errors import FailureCode, ModelError, PictureError, UsageError
from mfcli.models.registry import IMAGENET_MEAN, IMAGENET_STD, Family, Interpolation, Variant

INPUT_SIZES = range(32, 1025)
"""The accepted input sizes in pixels: the smallest has one position in the last stage; attention grows with the fourth
power of the size."""
MIN_CROP_PCT = 0.1
MIN_STD = 0.001

_SIDEWAYS = frozenset(
    {
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
    }
)
"""The operations that make columns of rows."""


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

    def apply(
        self,
        picture: Image.Image,
        max_pixels: int | None = None,
        *,
        turn: Image.Transpose | None = None,
        full_size: tuple[int, int] | None = None,
    ) -> NDArray[np.float32]:
        """Turn an RGB picture into a normalised float32 array of shape (3, H, W), C-contiguous.

        Args:
            picture: mode RGB, any size.
            max_pixels: the largest number of pixels that the resize step may produce; None for no limit.
            turn: the operation that makes the picture upright; None for one that is.
            full_size: (width, height) in pixels of the upright picture, of which `picture` may be a copy whose sides
                were divided by a whole number and rounded up; None for the size of `picture`.

        Raises:
            PictureError: too_large, if the resized picture (of a very long strip) would exceed max_pixels.
        """
        stored_size = picture.size if full_size is None else _swap_sides(full_size, turn)
        full_size = _swap_sides(stored_size, turn)
        size = self.compute_resized_size(*full_size)
        if max_pixels is not None and size[0] * size[1] > max_pixels:
            raise PictureError(
                FailureCode.TOO_LARGE,
                f"{full_size[0]}x{full_size[1]} would be resized to {size[0]}x{size[1]}, "
                f"which exceeds max_pixels={max_pixels}",
            )
        if picture.size != stored_size:
            picture = self._resize_scaled(picture, stored_size, size, turn)
        else:
            picture = picture if turn is None else picture.transpose(turn)
            picture = picture if picture.size == size else picture.resize(size, self._filter)
        pixels = np.asarray(self._crop_centre(picture))
        out = np.empty((3, *pixels.shape[:2]), np.float32)
        for channel in range(3):
            # all levels are in range; with mode="raise" NumPy would buffer the output
            np.take(self._lookup[channel], pixels[..., channel], out=out[channel], mode="clip")
        return out

    def _resize_scaled(
        self, picture: Image.Image, stored_size: tuple[int, int], size: tuple[int, int], turn: Image.Transpose | None
    ) -> Image.Image:
        """Return the upright picture resized from a smaller copy, whose last row and column may be fractions."""
        divisor = round(max(stored_size) / max(picture.size))
        box = (0, 0, stored_size[0] / divisor, stored_size[1] / divisor)
        resized = picture.resize(_swap_sides(size, turn), self._filter, box)
        return resized if turn is None else resized.transpose(turn)

    def _crop_centre(self, picture: Image.Image) -> Image.Image:
        height, width = self.crop_size
        left = round((picture.width - width) / 2)
        top = round((picture.height - height) / 2)
        return picture.crop((left, top, left + width, top + height))

    @property
    def _filter(self) -> Image.Resampling:
        return Image.Resampling[self.interpolation.upper()]

    @cached_property
    def _lookup(self) -> NDArray[np.float32]:
        """The normalised values of the 256 levels, float32 (3, 256), computed in torchvision's order of operations."""
        levels = np.arange(256, dtype=np.float32) / np.float32(255)
        mean, std = (np.array(v, np.float32)[:, None] for v in (self.mean, self.std))
        return (levels - mean) / std


def _swap_sides(size: tuple[int, int], turn: Image.Transpose | None) -> tuple[int, int]:
    return (size[1], size[0]) if turn in _SIDEWAYS else size


def make_preprocess_plan(variant: Variant) -> PreprocessPlan:
    """Return the plan of a variant's input size, crop_pct, interpolation, mean and std, as timm builds it."""
    _, height, width = variant.input_size
    return PreprocessPlan(
        resize_shorter_side=math.floor(height / variant.crop_pct),
        crop_size=(height, width),
        interpolation=variant.interpolation.value,
        mean=variant.mean,
        std=variant.std,
    )


@dataclass(frozen=True, slots=True)
class PreprocessOverrides:
    """Preprocessing that replaces a model's; None keeps the model's.

    Attributes:
        mean: per channel of RGB values scaled to 0..1.
        std: likewise.
        crop_pct: share of the resized shorter side that the centre crop keeps, as in timm.
        interpolation: the filter of resizing.
        input_size: height and width of the crop in pixels.
    """

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_pct: float | None = None
    interpolation: Interpolation | None = None
    input_size: int | None = None

    @classmethod
    def parse(
        cls,
        *,
        mean: Iterable[float] | None = None,
        std: Iterable[float] | None = None,
        crop_pct: float | None = None,
        interpolation: str | None = None,
        input_size: int | None = None,
    ) -> "PreprocessOverrides":
        """Check values, of any type, and convert them.

        Raises:
            UsageError: one is not valid.
        """
        return cls(
            None if mean is None else _parse_channels("mean", mean, 0, IMAGENET_MEAN),
            None if std is None else _parse_channels("std", std, MIN_STD, IMAGENET_STD),
            None if crop_pct is None else _parse_crop_pct(crop_pct),
            None if interpolation is None else _parse_interpolation(interpolation),
            None if input_size is None else _parse_input_size(input_size),
        )

    def apply(self, variant: Variant) -> Variant:
        """Return a variant with this preprocessing.

        Raises:
            UsageError: its architecture cannot take the input size, or it is a model of the user's own classes.
        """
        if variant.folder is not None:
            if self != PreprocessOverrides():
                raise UsageError(f"{variant.name} has the preprocessing that it was trained with", "leave it out")
            return variant
        size = self.input_size or variant.input_size[1]
        if variant.family is Family.RANDFORMER and size != variant.input_size[1]:
            raise UsageError(
                f"input_size={size} does not fit {variant.name}, whose weights mix the positions of one size",
                f"input_size={variant.input_size[1]}",
            )
        return replace(
            variant.with_input_size(size, size),
            mean=self.mean or variant.mean,
            std=self.std or variant.std,
            crop_pct=self.crop_pct or variant.crop_pct,
            interpolation=self.interpolation or variant.interpolation,
        )


def _parse_channels(
    name: str, values: Iterable[Any], least: float, example: tuple[float, float, float]
) -> tuple[float, float, float]:
    try:
        values = list(values)
        first, second, third = map(float, values)
        if all(least <= value <= 1 for value in (first, second, third)):
            return first, second, third
    except (TypeError, ValueError, OverflowError):
        pass
    given = ",".join(map(str, values)) if isinstance(values, list) else values
    raise UsageError(
        f"{name}={given} is not three numbers from {least:g} to 1, for red, green and blue scaled to 0..1",
        f"{name}={','.join(map(str, example))}",
    )


def _parse_crop_pct(value: Any) -> float:
    if isinstance(value, int | float) and MIN_CROP_PCT <= value <= 1:
        return float(value)
    raise UsageError(f"crop_pct={value} is not a number from {MIN_CROP_PCT} to 1", "crop_pct=0.95")


def _parse_interpolation(value: Any) -> Interpolation:
    try:
        return Interpolation(value)
    except ValueError as error:
        raise UsageError(f"unknown interpolation {value!r}", f"one of {', '.join(Interpolation)}") from error


def _parse_input_size(value: Any) -> int:
    if value in INPUT_SIZES:
        return int(value)
    first, last = INPUT_SIZES[0], INPUT_SIZES[-1]
    raise UsageError(f"input_size={value} is not a number of pixels from {first} to {last}", "input_size=224")


def _to_floats(values: Any) -> tuple[float, float, float]:
    """Return three floats; of float32 values, the shortest decimals that round to them."""
    first, second, third = (float(np.format_float_positional(np.float32(float(v)), unique=True)) for v in values)
    return first, second, third
