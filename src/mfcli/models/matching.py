"""Matching a file's parameters against the variants': names of other code, prefixes of trainers, shapes.

Only names and shapes are looked at. Nothing here reads a file.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from mfcli.errors import ModelError
from mfcli.models.parameters import Shape, find_num_classes, parameter_shapes
from mfcli.models.registry import ARCHITECTURES, VARIANTS, Architecture, Variant

_Value = TypeVar("_Value")

_PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes that DataParallel, torch.compile and trainers add to every name, possibly several."""
_FIRST_LAYER = re.compile(
    rf"((?:{'|'.join(map(re.escape, _PREFIXES))})*)(?:downsample_layers\.0\.conv|stem\.conv|patch_embed\.proj)\.weight"
)
"""The stem's weights under the names of the paper's code, of timm, and of the first PoolFormer's code."""

_TIMM_NAMES = (
    (r"^stem\.conv\.", "downsample_layers.0.conv."),
    (r"^stem\.norm\.", "downsample_layers.0.post_norm."),
    (r"^stages\.(\d)\.downsample\.norm\.", r"downsample_layers.\1.pre_norm."),
    (r"^stages\.(\d)\.downsample\.conv\.", r"downsample_layers.\1.conv."),
    (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
)
"""timm's names on the left: `stages.0.blocks.1.` becomes `stages.0.1.`, and so on."""


def to_parameters(tensors: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return the backbone's tensors under the paper's names, without a trainer's prefix and other modules."""
    prefix = _find_prefix(tensors)
    names = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return to_reference_names(names)


def _find_prefix(names: Iterable[str]) -> str:
    """Return the prefix of the backbone's names; other names belong to something else, such as a loss."""
    found = [match[1] for name in names if (match := _FIRST_LAYER.fullmatch(name))]
    return min(found, key=len, default="")


def to_reference_names(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """Rename the parameters of timm, and of the first PoolFormer's code, to those of the paper's code."""
    if "stem.conv.weight" in state:
        return {_rename_timm(name): value for name, value in state.items()}
    if "patch_embed.proj.weight" in state:
        return {_rename_poolformer(name): value for name, value in state.items()}
    return dict(state)


def _rename_timm(name: str) -> str:
    for pattern, replacement in _TIMM_NAMES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name


def _rename_poolformer(name: str) -> str:
    """Rename; `network.4.1.` is the third stage's second block, `network.3.proj` the downsampling before it."""
    name = re.sub(
        r"layer_scale_(\d)$", r"layer_scale\1.scale", name.replace("patch_embed.proj", "downsample_layers.0.conv")
    )
    name = re.sub(r"^network\.(\d)\.proj\.", lambda m: f"downsample_layers.{int(m[1]) // 2 + 1}.conv.", name)
    return re.sub(r"^network\.(\d)\.", lambda m: f"stages.{int(m[1]) // 2}.", name)


def match_variant(file: str, shapes: Mapping[str, Shape], variant: Variant) -> tuple[dict[str, Shape], int]:
    """Match a file's table of parameters against a variant's; 1x1 convolutions may stand for linear layers.

    Args:
        file: how messages name the file.
        shapes: of its tensors, by the names of the paper's code.
        variant: the model.

    Returns:
        The shape of every parameter, and the number of classes of the head.

    Raises:
        ModelError: a parameter is missing, unexpected or of another shape.
    """
    num_classes = find_num_classes(shapes) or variant.num_classes
    expected = parameter_shapes(variant.architecture, num_classes)
    found = {name: _squeeze_like(shape, expected.get(name)) for name, shape in shapes.items()}
    if found != expected:
        raise ModelError(
            f"{file} does not fit {variant.name}: {_describe_mismatch(found, expected)}", _suggest_models(shapes)
        )
    return expected, num_classes


def match_published(file: str, shapes: Mapping[str, Shape], variant: Variant) -> tuple[dict[str, Shape], int]:
    """Match a file's table as `match_variant` does against a variant's published one, its number of classes included.

    Raises:
        ModelError: a parameter is missing, unexpected or of another shape, or the head has other classes.
    """
    matched = _, num_classes = match_variant(file, shapes, variant)
    if num_classes != variant.num_classes:
        raise ModelError(
            f"{file} has a head of {num_classes} classes instead of the {variant.num_classes} of {variant.name}",
            "use it with mf predict: weights=FILE",
        )
    return matched


def _squeeze_like(shape: Shape, expected: Shape | None) -> Shape:
    """Return the shape of a 1x1 convolution as a linear layer's, where that is expected."""
    return expected if expected is not None and shape == (*expected, 1, 1) else shape


def _describe_mismatch(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> str:
    parts = []
    if missing := [name for name in expected if name not in found]:
        parts.append(f"{len(missing)} missing, first {missing[0]}")
    if unexpected := [name for name in found if name not in expected]:
        parts.append(f"{len(unexpected)} unexpected, first {unexpected[0]}")
    if wrong := [name for name in expected if name in found and found[name] != expected[name]]:
        first = wrong[0]
        parts.append(f"{len(wrong)} of another shape, first {first} {found[first]} instead of {expected[first]}")
    return "; ".join(parts)


def _find_fitting_architectures(shapes: Mapping[str, Shape]) -> list[Architecture]:
    """Return the architectures whose tensors have these names and shapes, with a head of as many classes."""
    num_classes = find_num_classes(shapes)
    if num_classes is None:
        return []
    wanted = {name: _squeeze_1x1(shape) for name, shape in shapes.items()}
    return [a for a in ARCHITECTURES.values() if parameter_shapes(a, num_classes) == wanted]


def _squeeze_1x1(shape: Shape) -> Shape:
    """Return the linear layer's shape for that of a 1x1 convolution; other shapes are unchanged."""
    return shape[:-2] if len(shape) in (3, 4) and shape[-2:] == (1, 1) else shape


def _suggest_models(shapes: Mapping[str, Shape]) -> str:
    fitting = _find_fitting_architectures(shapes)
    if not fitting:
        return "these weights fit no model of mf list-models"
    num_classes = find_num_classes(shapes)
    variants = [v for v in VARIANTS.values() if v.architecture in fitting]
    same_head = [v for v in variants if v.num_classes == num_classes]
    return f"these weights fit model={' or '.join(v.name for v in same_head or variants)}"
