"""Preprocessing plans: bit-identical to timm's transform, for every configuration of the registry."""

import json
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_data import convert_transform, make_timm_plan

from deterministic import picture
from mfcli.errors import FailureCode, ModelError, PictureError
from mfcli.models.preprocess import PreprocessPlan, make_preprocess_plan
from mfcli.models.registry import list_variants

CONFIGURATIONS = sorted({(v.input_size, v.crop_pct, v.interpolation) for v in list_variants()})
PLAN = PreprocessPlan(248, (224, 224), "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@cache
def timm_transform(input_size: tuple[int, int, int], crop_pct: float, interpolation: str) -> Any:
    from timm.data import create_transform

    return create_transform(input_size=input_size, crop_pct=crop_pct, interpolation=interpolation)


def test_the_registry_has_five_configurations() -> None:
    assert [(size[1], crop_pct) for size, crop_pct, _ in CONFIGURATIONS] == [
        (64, 0.95),
        (224, 0.9),
        (224, 0.95),
        (224, 1.0),
        (384, 1.0),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    mode=st.sampled_from(["RGB", "L", "P", "CMYK", "1"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_plan_equals_timms_transform_bit_for_bit(
    configuration: tuple[tuple[int, int, int], float, str], width: int, height: int, mode: str, interpolation: str
) -> None:
    if max(width, height) / min(width, height) > 40:
        height = width
    transform = timm_transform(configuration[0], configuration[1], interpolation)
    rgb = picture(width, height, mode).convert("RGB")
    found = convert_transform(transform).apply(rgb)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.array_equal(found, transform(rgb).numpy())


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (224, 224), (225, 224), (64, 63), (500, 375)])
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_extreme_sizes(size: tuple[int, int], configuration: tuple[tuple[int, int, int], float, str]) -> None:
    transform = timm_transform(*configuration)
    rgb = picture(*size)
    assert np.array_equal(convert_transform(transform).apply(rgb), transform(rgb).numpy())


@pytest.mark.parametrize("variant", list_variants(), ids=lambda v: v.name)
def test_every_row_has_a_plan(variant: Any) -> None:
    plan = make_preprocess_plan(variant)
    assert plan == make_timm_plan(variant)
    assert plan.crop_size == variant.input_size[1:]
    assert plan.resize_shorter_side == int(variant.input_size[1] / variant.crop_pct)
    assert (plan.mean, plan.std) == (variant.mean, variant.std)
    assert PreprocessPlan.from_json(json.dumps(asdict(plan))) == plan


def test_transforms_that_a_plan_cannot_express_are_refused() -> None:
    from timm.data import create_transform
    from torchvision import transforms

    for transform in (
        create_transform(input_size=(3, 224, 224), is_training=True),
        create_transform(input_size=(3, 224, 224), crop_mode="squash"),
        create_transform(input_size=(3, 224, 224), crop_mode="border"),
        create_transform(input_size=(3, 224, 192)),
        create_transform(input_size=(3, 224, 224), crop_pct=1.5),
        transforms.Compose([transforms.ToTensor()]),
        transforms.ToTensor(),
    ):
        with pytest.raises(ValueError, match="a preprocessing plan cannot express"):
            convert_transform(transform)


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
