"""The MetaFormer backbone in torch: stem, downsampling, token mixers, block, stage, head.

A block is `x + token_mixer(norm(x))`, then `x + mlp(norm(x))`; the families differ only in token mixer and norm
(Yu et al., https://arxiv.org/abs/2210.13452, section 2). Parameter names are those of the paper's code
(https://github.com/sail-sg/metaformer), so that its checkpoints load with strict=True. Between the stem and the
global pooling tensors are float (N, H, W, C), channels last. torch is imported here at module level: import this
module inside functions only.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from mfcli.models.registry import Architecture, Family, find_variant

Layer = Callable[..., nn.Module]
"""A callable that builds a module; its arguments are documented where it is used."""


class LayerNormGeneral(nn.Module):
    """Normalises (N, H, W, C) over `normalized_dim` and scales each channel.

    Over (1, 2, 3) it is the modified layer norm of PoolFormer (group norm with one group); the variance is the biased
    one.

    Args:
        dim: channels C, the length of weight and bias.
        normalized_dim: the dimensions that share a mean and a variance.
        bias: whether a learnable bias is added.
        eps: added to the variance.
    """

    def __init__(self, dim: int, normalized_dim: tuple[int, ...] = (-1,), bias: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.normalized_dim = normalized_dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised tensor, same shape as `x`."""
        centred = x - x.mean(self.normalized_dim, keepdim=True)
        variance = centred.square().mean(self.normalized_dim, keepdim=True)
        x = centred / torch.sqrt(variance + self.eps) * self.weight
        return x if self.bias is None else x + self.bias


class LayerNormWithoutBias(nn.Module):
    """Layer norm over the channels with a weight and no bias; `eps` is added to the variance."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised tensor, same shape as `x`."""
        return F.layer_norm(x, self.weight.shape, self.weight, None, self.eps)


class StarReLU(nn.Module):
    """`scale * relu(x)**2 + bias` with one learnable scale and bias for all channels (the paper's equation 8)."""

    def __init__(self, scale: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), scale))
        self.bias = nn.Parameter(torch.full((1,), bias))

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation, same shape as `x`."""
        return self.scale * F.relu(x).square() + self.bias


class SquaredReLU(nn.Module):
    """`relu(x)**2` (So et al., https://arxiv.org/abs/2109.08668)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation, same shape as `x`."""
        return F.relu(x).square()


class Scale(nn.Module):
    """A learnable factor per channel: layer scale on a branch, residual scale on the shortcut."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` scaled, same shape."""
        return x * self.scale


class Downsampling(nn.Module):
    """A strided convolution between stages, or the stem: (N, C, H, W) or (N, H, W, C) in, (N, H', W', C') out.

    Args:
        in_dim: channels in.
        out_dim: channels out.
        kernel_size: of the convolution, in pixels.
        stride: of the convolution.
        padding: of the convolution.
        channels_first: whether the input is (N, C, H, W), like a picture.
        pre_norm: builds the norm before the convolution from the channels; None for none.
        post_norm: builds the norm after the convolution; None for none.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel_size: int,
        stride: int,
        padding: int,
        channels_first: bool = False,
        pre_norm: Layer | None = None,
        post_norm: Layer | None = None,
    ) -> None:
        super().__init__()
        if channels_first and pre_norm is not None:
            raise ValueError("pre_norm needs channels_first=False: norms expect channels last")
        self.channels_first = channels_first
        self.pre_norm = pre_norm(in_dim) if pre_norm else nn.Identity()
        self.conv = nn.Conv2d(in_dim, out_dim, kernel_size, stride, padding)
        self.post_norm = post_norm(out_dim) if post_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the downsampled tensor, (N, H', W', C')."""
        if not self.channels_first:
            x = self.pre_norm(x).permute(0, 3, 1, 2)
        return self.post_norm(self.conv(x).permute(0, 2, 3, 1))


class IdentityMixing(nn.Identity):
    """No token mixing (IdentityFormer)."""

    def __init__(self, dim: int) -> None:
        super().__init__()


class RandomMixing(nn.Module):
    """Tokens are mixed by a frozen random matrix whose rows sum to one (RandFormer).

    Args:
        dim: channels, not used.
        num_tokens: H * W of the feature map; no other size is supported.
    """

    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__()
        matrix = torch.softmax(torch.rand(num_tokens, num_tokens), dim=-1)
        self.random_matrix = nn.Parameter(matrix, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed tensor, same shape as `x`."""
        return (self.random_matrix @ x.flatten(1, 2)).view_as(x)


class Pooling(nn.Module):
    """Tokens are averaged with their neighbours, minus themselves (PoolFormer)."""

    def __init__(self, dim: int, pool_size: int = 3) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(pool_size, stride=1, padding=pool_size // 2, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed tensor, same shape as `x`."""
        return self.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) - x


class SepConv(nn.Module):
    """Inverted separable convolution (MobileNetV2): expand, activate, depthwise, project (ConvFormer)."""

    def __init__(self, dim: int, expansion_ratio: int = 2, kernel_size: int = 7) -> None:
        super().__init__()
        hidden = expansion_ratio * dim
        self.pwconv1 = nn.Linear(dim, hidden, bias=False)
        self.act1 = StarReLU()
        self.dwconv = nn.Conv2d(hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden, bias=False)
        self.pwconv2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed tensor, same shape as `x`."""
        x = self.act1(self.pwconv1(x)).permute(0, 3, 1, 2)
        return self.pwconv2(self.dwconv(x).permute(0, 2, 3, 1))


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, without biases and position embeddings (CAFormer)."""

    def __init__(self, dim: int, head_dim: int = 32) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.num_heads = max(dim // head_dim, 1)
        attention_dim = self.num_heads * head_dim
        self.qkv = nn.Linear(dim, 3 * attention_dim, bias=False)
        self.proj = nn.Linear(attention_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed tensor, same shape as `x`."""
        n, h, w, _ = x.shape
        qkv = self.qkv(x).reshape(n, h * w, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (N, heads, H * W, head_dim)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, h, w, self.num_heads * self.head_dim))


class Mlp(nn.Module):
    """The channel MLP of a block: expand `mlp_ratio` times, activate, project."""

    def __init__(self, dim: int, mlp_ratio: int = 4, act_layer: Layer = StarReLU, bias: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, mlp_ratio * dim, bias=bias)
        self.act = act_layer()
        self.fc2 = nn.Linear(mlp_ratio * dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed tensor, same shape as `x`."""
        return self.fc2(self.act(self.fc1(x)))


class LinearHead(nn.Linear):
    """One linear layer on the pooled features, with dropout before it while training."""

    def __init__(self, dim: int, num_classes: int, head_dropout: float = 0.0) -> None:
        super().__init__(dim, num_classes)
        self.head_dropout = head_dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C) to logits (N, num_classes)."""
        return super().forward(F.dropout(x, self.head_dropout, self.training))


class MlpHead(nn.Module):
    """Two linear layers with squared ReLU and a layer norm (eps 1e-5, as in the paper's code) between them."""

    def __init__(self, dim: int, num_classes: int, head_dropout: float = 0.0, mlp_ratio: int = 4) -> None:
        super().__init__()
        hidden = mlp_ratio * dim
        self.fc1 = nn.Linear(dim, hidden)
        self.act = SquaredReLU()
        self.norm = nn.LayerNorm(hidden, eps=1e-5)
        self.head_dropout = nn.Dropout(head_dropout)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C) to logits (N, num_classes)."""
        return self.fc2(self.head_dropout(self.norm(self.act(self.fc1(x)))))


class MetaFormerBlock(nn.Module):
    """Token mixer, then channel MLP, each on a normalised input and with a shortcut around it.

    Args:
        dim: channels.
        token_mixer: builds the token mixer from `dim`.
        mlp: builds the channel MLP from `dim`.
        norm_layer: builds a norm from `dim`.
        drop_path: probability that a branch is dropped while training.
        layer_scale_init_value: initial factor of the branches, None for no factor.
        res_scale_init_value: initial factor of the shortcuts, None for no factor.
    """

    def __init__(
        self,
        dim: int,
        token_mixer: Layer,
        mlp: Layer,
        norm_layer: Layer,
        drop_path: float = 0.0,
        layer_scale_init_value: float | None = None,
        res_scale_init_value: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.token_mixer = token_mixer(dim)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.layer_scale1 = _make_scale(dim, layer_scale_init_value)
        self.res_scale1 = _make_scale(dim, res_scale_init_value)
        self.norm2 = norm_layer(dim)
        self.mlp = mlp(dim)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.layer_scale2 = _make_scale(dim, layer_scale_init_value)
        self.res_scale2 = _make_scale(dim, res_scale_init_value)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, same shape as `x`."""
        x = self.res_scale1(x) + self.layer_scale1(self.drop_path1(self.token_mixer(self.norm1(x))))
        return self.res_scale2(x) + self.layer_scale2(self.drop_path2(self.mlp(self.norm2(x))))


def _make_scale(dim: int, init_value: float | None) -> nn.Module:
    return nn.Identity() if init_value is None else Scale(dim, init_value)


_norm = partial(LayerNormWithoutBias, eps=1e-6)
_output_norm = partial(nn.LayerNorm, eps=1e-6)
_downsampling = partial(Downsampling, kernel_size=3, stride=2, padding=1)
_stem = partial(Downsampling, kernel_size=7, channels_first=True)

DOWNSAMPLE_LAYERS: tuple[Layer, ...] = (
    partial(_stem, stride=4, padding=2, post_norm=_norm),
    *[partial(_downsampling, pre_norm=_norm)] * 3,
)


class MetaFormer(nn.Module):
    """A MetaFormer: float (N, in_chans, H, W) pictures in, float (N, num_classes) logits out.

    Each sequence has one entry per stage.

    Args:
        in_chans: channels of the picture.
        num_classes: outputs of the head.
        depths: blocks in each stage.
        dims: channels of each stage.
        downsample_layers: each builds the layer before a stage from (channels in, channels out).
        token_mixers: each builds a block's token mixer from its channels.
        mlps: each builds a block's channel MLP from its channels.
        norm_layers: each builds a block's norms from its channels.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        head_dropout: dropout before the last linear layer.
        layer_scale_init_values: initial factors of the branches, None for none.
        res_scale_init_values: initial factors of the shortcuts, None for none.
        output_norm: builds the norm between pooling and head.
        head_fn: builds the head from (channels, num_classes, head_dropout=...).
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (64, 128, 320, 512),
        downsample_layers: Sequence[Layer] = DOWNSAMPLE_LAYERS,
        token_mixers: Sequence[Layer] = (IdentityMixing,) * 4,
        mlps: Sequence[Layer] = (Mlp,) * 4,
        norm_layers: Sequence[Layer] = (_norm,) * 4,
        drop_path_rate: float = 0.0,
        head_dropout: float = 0.0,
        layer_scale_init_values: Sequence[float | None] = (None,) * 4,
        res_scale_init_values: Sequence[float | None] = (None, None, 1.0, 1.0),
        output_norm: Layer = _output_norm,
        head_fn: Layer = LinearHead,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.downsample_layers = nn.ModuleList(
            layer(*channels) for layer, channels in zip(downsample_layers, pairwise((in_chans, *dims)), strict=True)
        )
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(MetaFormerBlock(dim, mixer, mlp, norm, next(rates), layer_scale, res_scale) for _ in range(depth))
            )
            for depth, dim, mixer, mlp, norm, layer_scale, res_scale in zip(
                depths,
                dims,
                token_mixers,
                mlps,
                norm_layers,
                layer_scale_init_values,
                res_scale_init_values,
                strict=True,
            )
        )
        self.norm = output_norm(dims[-1])
        self.head = head_fn(dims[-1], num_classes, head_dropout=head_dropout)
        self.apply(_init_weights)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the layers that timm's optimizers tell apart, from the stem to the norm; the head is the last one.

        Args:
            coarse: whether a stage is a layer, instead of a block.
        """
        block = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        downsampling = (r"^downsample_layers\.(\d+)", None if coarse else (0,))  # with the block behind it
        return {"stem": r"^downsample_layers\.0", "blocks": [downsampling, (block, None), (r"^norm", (99999,))]}

    def forward_map(self, x: Tensor) -> Tensor:
        """Return the last stage's feature map, float (N, H, W, dims[-1])."""
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the pooled and normalised features, float (N, dims[-1])."""
        return self.norm(self.forward_map(x).mean((1, 2)))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, float (N, num_classes), for normalised pictures, float (N, in_chans, H, W)."""
        return self.head(self.forward_features(x))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_modified_norm = partial(LayerNormGeneral, normalized_dim=(1, 2, 3), bias=False, eps=1e-6)


def _choose_token_mixers(architecture: Architecture) -> tuple[Layer, ...]:
    sep_conv = partial(SepConv, kernel_size=architecture.kernel_size)
    mixers: dict[Family, tuple[Layer, ...]] = {
        Family.IDENTITYFORMER: (IdentityMixing,) * 4,
        Family.RANDFORMER: (  # 196 and 49 tokens: the third and fourth stage of a 224x224 picture
            IdentityMixing,
            IdentityMixing,
            partial(RandomMixing, num_tokens=196),
            partial(RandomMixing, num_tokens=49),
        ),
        Family.POOLFORMER: (Pooling,) * 4,
        Family.POOLFORMERV2: (Pooling,) * 4,
        Family.CONVFORMER: (sep_conv,) * 4,
        Family.CAFORMER: (sep_conv, sep_conv, Attention, Attention),
    }
    return mixers[architecture.family]


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    head_dropout: float = 0.0,
) -> MetaFormer:
    """Return a variant's backbone with random weights, in eval mode.

    Args:
        name: a name that `mf list-models` shows, or an alias.
        num_classes: outputs of the head; None for the variant's own.
        in_chans: channels of the picture.
        drop_path_rate: stochastic depth of the last block while training.
        head_dropout: dropout before the last linear layer while training.

    Raises:
        ModelError: no variant has this name.
    """
    variant = find_variant(name)
    model = build_model(
        variant.architecture,
        num_classes=variant.num_classes if num_classes is None else num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        head_dropout=head_dropout,
    )
    return model.eval()


def build_model(
    architecture: Architecture,
    *,
    num_classes: int,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    head_dropout: float = 0.0,
) -> MetaFormer:
    """Return an architecture's backbone with random weights, in training mode; for the arguments see `create_model`."""
    build = _build_poolformer_v1 if architecture.family is Family.POOLFORMER else _build_baseline
    return build(
        architecture,
        in_chans=in_chans,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
        head_dropout=head_dropout,
    )


def _build_baseline(
    architecture: Architecture, in_chans: int, num_classes: int, drop_path_rate: float, head_dropout: float
) -> MetaFormer:
    stem = partial(_stem, stride=architecture.stem_stride, padding=architecture.stem_padding, post_norm=_norm)
    per_channel = architecture.family in (Family.CONVFORMER, Family.CAFORMER)
    return MetaFormer(
        in_chans=in_chans,
        num_classes=num_classes,
        depths=architecture.depths,
        dims=architecture.dims,
        downsample_layers=(stem, *DOWNSAMPLE_LAYERS[1:]),
        token_mixers=_choose_token_mixers(architecture),
        mlps=(partial(Mlp, mlp_ratio=architecture.mlp_ratio),) * 4,
        norm_layers=(_norm if per_channel else _modified_norm,) * 4,
        drop_path_rate=drop_path_rate,
        head_dropout=head_dropout,
        head_fn=MlpHead if architecture.mlp_head else LinearHead,
    )


def _build_poolformer_v1(
    architecture: Architecture, in_chans: int, num_classes: int, drop_path_rate: float, head_dropout: float
) -> MetaFormer:
    """PoolFormer as first published: GELU, biases, layer scale, no norms around downsampling, block norms eps 1e-5."""
    stem = partial(_stem, stride=architecture.stem_stride, padding=architecture.stem_padding)
    return MetaFormer(
        in_chans=in_chans,
        num_classes=num_classes,
        depths=architecture.depths,
        dims=architecture.dims,
        downsample_layers=(stem, *[_downsampling] * 3),
        token_mixers=_choose_token_mixers(architecture),
        mlps=(partial(Mlp, mlp_ratio=architecture.mlp_ratio, act_layer=nn.GELU, bias=True),) * 4,
        norm_layers=(partial(LayerNormGeneral, normalized_dim=(1, 2, 3), eps=1e-5),) * 4,
        drop_path_rate=drop_path_rate,
        head_dropout=head_dropout,
        layer_scale_init_values=(1e-5,) * 4,
        res_scale_init_values=(None,) * 4,
    )
