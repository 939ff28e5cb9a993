"""Preprocessing plans: bit-identical to timm's transform, for every configuration of the registry."""

import itertools
import json
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deterministic import picture
from mfcli.errors import FailureCode, ModelError, PictureError, UsageError
from mfcli.models.preprocess import PreprocessOverrides, PreprocessPlan, make_preprocess_plan
from mfcli.models.registry import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Variant, find_variant, list_variants

CONFIGURATIONS = {(v.input_size[1], v.crop_pct): v for v in list_variants()}
PLAN = PreprocessPlan(248, (224, 224), "bicubic", IMAGENET_MEAN, IMAGENET_STD)
HALF = (0.5, 0.5, 0.5)
NORMALISATIONS = ((IMAGENET_MEAN, IMAGENET_STD), (HALF, HALF), ((0.0, 1.0, 0.123456789), (0.0039215686, 1.0, 0.3)))
OVERRIDES = [
    PreprocessOverrides(mean, std, crop_pct, interpolation, size)
    for (size, crop_pct, interpolation), (mean, std) in zip(
        itertools.product((32, 63, 224, 257), (0.3, 0.875, 0.9, 0.95, 0.965, 1.0), Interpolation),
        itertools.cycle(NORMALISATIONS),
        strict=False,
    )
]


@cache
def timm_transform(variant: Variant) -> Any:
    from timm.data import create_transform, resolve_data_config

    names = ("input_size", "crop_pct", "interpolation", "mean", "std")
    return create_transform(**resolve_data_config({name: getattr(variant, name) for name in names}), is_training=False)


def assert_equal_to_timm(variant: Variant, rgb: Any) -> None:
    found = make_preprocess_plan(variant).apply(rgb)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.array_equal(found, timm_transform(variant)(rgb).numpy())


@pytest.mark.parametrize("turn", [None, *Image.Transpose])
def test_a_picture_is_turned_before_it_is_resized(turn: Image.Transpose | None) -> None:
    stored = picture(301, 207)
    upright = stored if turn is None else stored.transpose(turn)
    assert np.array_equal(PLAN.apply(stored, turn=turn), PLAN.apply(upright))


@pytest.mark.parametrize("turn", [None, *Image.Transpose])
def test_a_smaller_copy_is_resized_to_the_same_place(turn: Image.Transpose | None) -> None:
    """The last row and column of the copy stand for one pixel of the four that the others stand for."""
    size = (4 * 300 + 1, 4 * 250 + 1)
    stored = picture(60, 50).resize(size, Image.Resampling.BICUBIC)
    upright = stored if turn is None else stored.transpose(turn)
    found = PLAN.apply(stored.reduce(4), turn=turn, full_size=upright.size)
    assert np.abs(found - PLAN.apply(upright)).max() < 0.1


def test_the_registry_has_five_configurations() -> None:
    assert sorted(CONFIGURATIONS) == [(64, 0.95), (224, 0.9), (224, 0.95), (224, 1.0), (384, 1.0)]


@pytest.mark.slow
@pytest.mark.parametrize("variant", CONFIGURATIONS.values(), ids=lambda v: v.name)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    mode=st.sampled_from(["RGB", "L", "P", "CMYK", "1"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
@settings(max_examples=40, derandomize=True)
def test_a_plan_equals_timms_transform_bit_for_bit(
    variant: Variant, width: int, height: int, mode: str, interpolation: str
) -> None:
    if max(width, height) / min(width, height) > 40:
        height = width
    variant = PreprocessOverrides.parse(interpolation=interpolation).apply(variant)
    assert_equal_to_timm(variant, picture(width, height, mode).convert("RGB"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (224, 224), (225, 224), (64, 63), (500, 375)])
@pytest.mark.parametrize("variant", CONFIGURATIONS.values(), ids=lambda v: v.name)
def test_extreme_sizes(size: tuple[int, int], variant: Variant) -> None:
    assert_equal_to_timm(variant, picture(*size))


@pytest.mark.parametrize("overrides", OVERRIDES, ids=str)
def test_overrides_equal_timms_transform_bit_for_bit(overrides: PreprocessOverrides) -> None:
    assert_equal_to_timm(overrides.apply(find_variant("caformer_s18")), picture(150, 101))


@pytest.mark.parametrize("variant", list_variants(), ids=lambda v: v.name)
def test_every_row_has_a_plan(variant: Variant) -> None:
    plan = make_preprocess_plan(variant)
    resize, crop, _, normalize = timm_transform(variant).transforms
    assert (plan.resize_shorter_side, plan.crop_size) == (resize.size, tuple(crop.size))
    assert plan.interpolation == resize.interpolation.value
    assert [plan.mean, plan.std] == [pytest.approx(values.tolist()) for values in (normalize.mean, normalize.std)]
    assert PreprocessPlan.from_json(json.dumps(asdict(plan))) == plan
    assert PreprocessOverrides().apply(variant) == variant


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": (0.5, 0.5)}, "mean=0.5,0.5 is not three numbers from 0 to 1"),
        ({"mean": 0.5}, "mean=0.5 is not three numbers"),
        ({"mean": (123.7, 116.3, 103.5)}, "mean=123.7,116.3,103.5 is not three numbers from 0 to 1"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean=0.5,nan,0.5 is not"),
        ({"mean": [None, 1, 1]}, "mean=None,1,1 is not"),
        ({"std": (0.2, 0.2, 0)}, "std=0.2,0.2,0 is not three numbers from 0.001 to 1"),
        ({"std": (0.2, 0.2, -0.2)}, "std=0.2,0.2,-0.2 is not"),
        ({"crop_pct": 0}, "crop_pct=0 is not a number from 0.1 to 1"),
        ({"crop_pct": 1.01}, "crop_pct=1.01 is not"),
        ({"crop_pct": float("nan")}, "crop_pct=nan is not"),
        ({"crop_pct": "1"}, "crop_pct=1 is not"),
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic'"),
        ({"interpolation": ["box"]}, "unknown interpolation"),
        ({"input_size": 0}, "input_size=0 is not a number of pixels from 32 to 1024"),
        ({"input_size": 100_000}, "input_size=100000 is not"),
        ({"input_size": 224.5}, "input_size=224.5 is not"),
        ({"input_size": "224"}, "input_size=224 is not"),
    ],
)
def test_overrides_that_are_not_valid(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PreprocessOverrides.parse(**values)


def test_randformer_takes_one_input_size() -> None:
    variant = find_variant("randformer_s12")
    assert PreprocessOverrides(input_size=224).apply(variant) == variant
    with pytest.raises(UsageError, match="input_size=256 does not fit randformer_s12"):
        PreprocessOverrides(input_size=256).apply(variant)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "3", '{"resize_shorter_side": 3}', json.dumps(asdict(PLAN)).replace("bi", "x")]
)
def test_malformed_plans(text: str) -> None:
    with pytest.raises(ModelError, match="not a preprocessing plan"):
        PreprocessPlan.from_json(text)


def test_a_long_strip_is_refused_before_resizing() -> None:
    with pytest.raises(PictureError) as caught:
        PLAN.apply(picture(1, 10_000), max_pixels=178_956_970)
    assert caught.value.code is FailureCode.TOO_LARGE
    assert caught.value.message == "1x10000 would be resized to 248x2480000, which exceeds max_pixels=178956970"
