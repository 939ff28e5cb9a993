"""Every parameter of a backbone, by name and shape, computed from its architecture without torch.

The names are the paper's code's, in the order of a state dict. A checkpoint is recognised by this table alone, and an
artifact's graph is written from arrays that fit it; a test holds the table to the torch backbone for all variants.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise

from mfcli.models.registry import Architecture, Family

Shape = tuple[int, ...]

HEAD_DIM = 32
"""Channels of one attention head."""
SEP_CONV_RATIO = 2
"""How many times as wide a separable convolution is inside."""
HEAD_MLP_RATIO = 4
"""How many times as wide a two-layer head is inside."""
TOKENS = {2: 196, 3: 49}
"""Tokens of a 224x224 picture in the stages in which RandFormer mixes them by a matrix."""


def parameter_shapes(architecture: Architecture, num_classes: int, in_chans: int = 3) -> dict[str, Shape]:
    """Return the shape of every parameter by its name.

    Args:
        architecture: the backbone.
        num_classes: outputs of the head.
        in_chans: channels of the picture.
    """
    return dict(_iter_parameters(architecture, num_classes, in_chans))


def find_num_classes(shapes: Mapping[str, Shape]) -> int | None:
    """Return how many outputs the head in a table of shapes has; None where there is no head, or an empty one."""
    shape = shapes.get("head.fc2.weight", shapes.get("head.weight"))
    return shape[0] if shape and shape[0] > 0 else None


def _iter_parameters(architecture: Architecture, num_classes: int, in_chans: int) -> Iterator[tuple[str, Shape]]:
    is_v1 = architecture.family is Family.POOLFORMER
    for stage, (in_dim, dim) in enumerate(pairwise((in_chans, *architecture.dims))):
        prefix = f"downsample_layers.{stage}"
        if stage and not is_v1:
            yield f"{prefix}.pre_norm.weight", (in_dim,)
        kernel_size = 3 if stage else 7
        yield f"{prefix}.conv.weight", (dim, in_dim, kernel_size, kernel_size)
        yield f"{prefix}.conv.bias", (dim,)
        if not stage and not is_v1:
            yield f"{prefix}.post_norm.weight", (dim,)
    for stage, (depth, dim) in enumerate(zip(architecture.depths, architecture.dims, strict=True)):
        for block in range(depth):
            for name, shape in _iter_block(architecture, stage, dim):
                yield f"stages.{stage}.{block}.{name}", shape
    dim = architecture.dims[-1]
    yield "norm.weight", (dim,)
    yield "norm.bias", (dim,)
    for name, shape in _iter_head(architecture, dim, num_classes):
        yield f"head.{name}", shape


def _iter_block(architecture: Architecture, stage: int, dim: int) -> Iterator[tuple[str, Shape]]:
    is_v1 = architecture.family is Family.POOLFORMER
    for branch in (1, 2):
        yield f"norm{branch}.weight", (dim,)
        if is_v1:
            yield f"norm{branch}.bias", (dim,)
        yield from _iter_token_mixer(architecture, stage, dim) if branch == 1 else _iter_mlp(architecture, dim, is_v1)
        if is_v1:
            yield f"layer_scale{branch}.scale", (dim,)
        elif stage >= 2:
            yield f"res_scale{branch}.scale", (dim,)


def _iter_token_mixer(architecture: Architecture, stage: int, dim: int) -> Iterator[tuple[str, Shape]]:
    family, prefix = architecture.family, "token_mixer"
    if family is Family.RANDFORMER and stage in TOKENS:
        yield f"{prefix}.random_matrix", (TOKENS[stage], TOKENS[stage])
    elif family is Family.CONVFORMER or (family is Family.CAFORMER and stage < 2):
        hidden = SEP_CONV_RATIO * dim
        yield f"{prefix}.pwconv1.weight", (hidden, dim)
        yield f"{prefix}.act1.scale", (1,)
        yield f"{prefix}.act1.bias", (1,)
        yield f"{prefix}.dwconv.weight", (hidden, 1, architecture.kernel_size, architecture.kernel_size)
        yield f"{prefix}.pwconv2.weight", (dim, hidden)
    elif family is Family.CAFORMER:
        attention_dim = max(dim // HEAD_DIM, 1) * HEAD_DIM
        yield f"{prefix}.qkv.weight", (3 * attention_dim, dim)
        yield f"{prefix}.proj.weight", (dim, attention_dim)


def _iter_mlp(architecture: Architecture, dim: int, is_v1: bool) -> Iterator[tuple[str, Shape]]:
    hidden = architecture.mlp_ratio * dim
    yield "mlp.fc1.weight", (hidden, dim)
    if is_v1:
        yield "mlp.fc1.bias", (hidden,)
    else:
        yield "mlp.act.scale", (1,)
        yield "mlp.act.bias", (1,)
    yield "mlp.fc2.weight", (dim, hidden)
    if is_v1:
        yield "mlp.fc2.bias", (dim,)


def _iter_head(architecture: Architecture, dim: int, num_classes: int) -> Iterator[tuple[str, Shape]]:
    if not architecture.mlp_head:
        yield "weight", (num_classes, dim)
        yield "bias", (num_classes,)
        return
    hidden = HEAD_MLP_RATIO * dim
    yield "fc1.weight", (hidden, dim)
    yield "fc1.bias", (hidden,)
    yield "norm.weight", (hidden,)
    yield "norm.bias", (hidden,)
    yield "fc2.weight", (num_classes, hidden)
    yield "fc2.bias", (num_classes,)
