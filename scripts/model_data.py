"""Write the data of mfcli.models that come from timm: preprocessing plans and ImageNet's class names.

    python scripts/model_data.py

timm is the one source of truth. The plan of a variant is what `create_transform` builds from its input_size, crop_pct,
interpolation, mean and std, step by step; an unknown step is an error. Names are those of `ImageNetInfo`.
"""

import csv
import gzip
import io
import json
from dataclasses import asdict
from typing import Any

import numpy as np
from timm.data import ImageNetInfo, create_transform
from timm.data.transforms import MaybeToTensor
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize

from mfcli.models.labels import IMAGENET_FILE
from mfcli.models.preprocess import PLANS_FILE, PreprocessPlan
from mfcli.models.registry import Variant, list_variants

LISTS = {"imagenet-1k": "in1k", "imagenet-22k": "in21k"}
"""Our names of timm's class lists; its "imagenet-22k" has the 21,841 classes of these checkpoints."""


def make_timm_plan(variant: Variant) -> PreprocessPlan:
    """Return the plan of the evaluation transform that timm builds for a variant."""
    transform = create_transform(
        input_size=variant.input_size,
        crop_pct=variant.crop_pct,
        interpolation=variant.interpolation,
        mean=variant.mean,
        std=variant.std,
    )
    return convert_transform(transform)


def convert_transform(transform: Any) -> PreprocessPlan:
    """Convert an evaluation transform of timm's `create_transform` to a plan.

    Raises:
        ValueError: it has a step, or a step has a setting, that a plan cannot express.
    """
    steps = transform.transforms if isinstance(transform, Compose) else None
    kinds = [type(step) for step in steps or ()]
    if steps is None or kinds != [Resize, CenterCrop, MaybeToTensor, Normalize]:
        raise ValueError(f"timm built a transform that a preprocessing plan cannot express: {transform}")
    resize, crop, _, normalize = steps
    if not isinstance(resize.size, int) or resize.max_size is not None or not resize.antialias:
        raise ValueError(f"timm built a resize step that a preprocessing plan cannot express: {resize}")
    crop_height, crop_width = crop.size
    if max(crop_height, crop_width) > resize.size:
        raise ValueError(f"timm built a crop step that pads, which a preprocessing plan cannot express: {crop}")
    return PreprocessPlan(
        resize_shorter_side=resize.size,
        crop_size=(int(crop_height), int(crop_width)),
        interpolation=resize.interpolation.value,
        mean=_to_floats(normalize.mean),
        std=_to_floats(normalize.std),
    )


def _to_floats(values: Any) -> tuple[float, float, float]:
    """Return float32 values as the shortest decimals that round to them."""
    first, second, third = (float(np.format_float_positional(np.float32(float(v)), unique=True)) for v in values)
    return first, second, third


def list_classes() -> list[tuple[str, str, str]]:
    """Return WordNet id, name and lists of every ImageNet class, sorted by id, as the heads of all lists are."""
    infos = {ours: ImageNetInfo(theirs) for theirs, ours in LISTS.items()}
    rows: dict[str, tuple[str, list[str]]] = {}
    for ours, info in infos.items():
        wnids = info.label_names()
        if wnids != sorted(wnids):
            raise ValueError(f"timm's list for {ours} is not sorted by WordNet id")
        for wnid in wnids:
            rows.setdefault(wnid, (info.label_name_to_description(wnid), []))[1].append(ours)
    return [(wnid, name, " ".join(lists)) for wnid, (name, lists) in sorted(rows.items())]


def format_plans() -> str:
    """Return the plan of every variant as a JSON object, one variant a line."""
    plans = {variant.name: asdict(make_timm_plan(variant)) for variant in list_variants()}
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in plans.items()) + "\n}\n"


def format_classes() -> str:
    """Return every ImageNet class as tab-separated text with a header."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows([("wnid", "name", "lists"), *list_classes()])
    return text.getvalue()


def main() -> None:
    """Write both files."""
    PLANS_FILE.write_text(format_plans())
    IMAGENET_FILE.write_bytes(gzip.compress(format_classes().encode(), mtime=0))


if __name__ == "__main__":
    main()
