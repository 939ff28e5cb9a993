"""The inference graph of a backbone, written node by node: what the runtime should do, not what an exporter emits.

Three ideas, each of them a pass over memory less between the products, which are what the time should go to:

- A tensor carries factors and offsets per channel that are still owed (`Feature.gain`, `Feature.shift`): the scale and
  bias of StarReLU, the weight and bias of a norm over all dimensions, layer scale. The next linear layer takes them up
  in its own weights. A layer norm keeps its weight, because the operator multiplies by one in any case.
- A stage that convolves or pools keeps its maps channels first, (N, C, H, W), with 1x1 convolutions for linear layers:
  ONNX Runtime then computes the convolutions, their ReLU and the shortcuts' additions in its blocked layout, without
  leaving it. All other stages keep channels last and multiply matrices.
- Squares are products.

Only operators of ONNX itself are used, so that every runtime can read the graph, and pooling to one pixel is
GlobalAveragePool: ONNX Runtime's ReduceMean adds up in another order when the batch is one picture, and its logits
would depend on the batch. torch is imported here through metaformer: import this module inside functions only.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from mfcli.models.metaformer import (
    Attention,
    Downsampling,
    IdentityMixing,
    LayerNormGeneral,
    LayerNormWithoutBias,
    MetaFormer,
    MetaFormerBlock,
    Mlp,
    MlpHead,
    Pooling,
    RandomMixing,
    Scale,
    SepConv,
    SquaredReLU,
    StarReLU,
)

OPSET = 20
"""The oldest with Gelu; read by onnxruntime 1.20 and openvino 2024.6."""

IR_VERSION = 9
"""The one that came with this opset."""

Array = NDArray[np.float32]

_CHANNELS_FIRST = (SepConv, Pooling)
"""Token mixers that work on maps: their stages stay channels first."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A tensor between two layers; its value is `gain * tensor + shift`.

    Attributes:
        name: the tensor, float32 (N, H, W, C) or (N, C, H, W).
        channels: C.
        size: (H, W).
        channels_last: which of both layouts it is.
        gain: factor per channel that is still owed, float32 (C,) or (1,); None for 1.
        shift: the same for what is to be added; None for 0.
    """

    name: str
    channels: int
    size: tuple[int, int]
    channels_last: bool
    gain: Array | None = None
    shift: Array | None = None


def write_graph(model: MetaFormer, input_size: tuple[int, int, int], *, half_weights: bool = False) -> ModelProto:
    """Return the graph of a backbone: `input` float32 (N, C, H, W) to `logits` float32 (N, classes), N free.

    Args:
        model: in eval mode; its parameters' names name the graph's constants.
        input_size: (C, H, W) of a picture.
        half_weights: store weights that float16 holds exactly as that; the arithmetic stays float32.
    """
    writer = _Writer(model, half_weights)
    with torch.no_grad():
        writer.backbone(model, input_size)
    picture = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *input_size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", model.num_classes])
    graph = helper.make_graph(writer.nodes, "metaformer", [picture], [logits], writer.constants)
    proto = helper.make_model(graph, producer_name="mfcli", opset_imports=[helper.make_opsetid("", OPSET)])
    proto.ir_version = IR_VERSION
    return proto


class _Writer:
    """Writes the nodes of one module after another."""

    def __init__(self, model: MetaFormer, half_weights: bool) -> None:
        self.nodes: list[Any] = []
        self.constants: list[TensorProto] = []
        self._names = {module: name for name, module in model.named_modules()}
        self._half_weights = half_weights
        self._known: set[str] = set()

    def node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with one output; return the output's name."""
        name = name or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Add a constant as it is; one of a name that exists is taken to be the same."""
        if name not in self._known:
            self._known.add(name)
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def numbers(self, *values: int) -> str:
        """Add integers, as shapes are."""
        return self.constant(f"numbers_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def weight(self, name: str, values: Array, *factors: Array) -> str:
        """Add a large constant times small ones that broadcast to it.

        The product is made here, unless the weights are stored as float16: then the graph holds the product of
        constants, which the runtime makes when it loads.
        """
        half = values.astype(np.float16)
        if not (self._half_weights and np.array_equal(half.astype(np.float32), values)):
            product = values.astype(np.float64)
            for factor in factors:
                product = product * factor
            return self.constant(name, product.astype(np.float32))
        stored = self.constant(f"{name}.half", half)
        result = self.node("Cast", stored, name=f"{name}.float", to=TensorProto.FLOAT)
        for index, factor in enumerate(factors):
            result = self.node("Mul", result, self.constant(f"{name}.factor{index}", factor))
        return result

    def in_layout(self, x: Feature, channels_last: bool) -> Feature:
        """Transpose a tensor unless it has this layout."""
        if x.channels_last == channels_last:
            return x
        perm = [0, 2, 3, 1] if channels_last else [0, 3, 1, 2]
        return replace(x, name=self.node("Transpose", x.name, perm=perm), channels_last=channels_last)

    def settled(self, x: Feature) -> Feature:
        """Apply what is owed: on maps by a batch norm, which ONNX Runtime can do in its blocked layout."""
        if x.gain is None and x.shift is None:
            return x
        gain = np.ones(1, np.float32) if x.gain is None else x.gain
        shift = np.zeros(1, np.float32) if x.shift is None else x.shift
        name = x.name
        if x.channels_last:
            if x.gain is not None:
                name = self.node("Mul", name, self.constant(f"{x.name}.gain", gain))
            if shift.any():
                name = self.node("Add", name, self.constant(f"{x.name}.shift", shift))
        else:
            zeros = self.constant(f"zeros_{x.channels}", np.zeros(x.channels, np.float32))
            ones = self.constant(f"ones_{x.channels}", np.ones(x.channels, np.float32))
            gain_name = self.constant(f"{x.name}.gain", _per_channel(gain, x.channels))
            shift_name = self.constant(f"{x.name}.shift", _per_channel(shift, x.channels))
            name = self.node("BatchNormalization", name, gain_name, shift_name, zeros, ones, epsilon=0.0)
        return replace(x, name=name, gain=None, shift=None)

    def linear(self, x: Feature, name: str, weight: Array, own_bias: torch.Tensor | None = None) -> Feature:
        """Write a linear layer over the channels: weight float32 (out, in)."""
        bias = np.zeros(len(weight)) if own_bias is None else _array(own_bias).astype(np.float64)
        if x.shift is not None:
            bias += weight.astype(np.float64) @ _per_channel(x.shift, x.channels)
        if x.channels_last:
            factors = () if x.gain is None else (x.gain[:, np.newaxis],)
            out = self.node("MatMul", x.name, self.weight(f"{name}.weight", weight.T, *factors))
            if bias.any():
                out = self.node("Add", out, self.constant(f"{name}.bias", bias.astype(np.float32)))
        else:
            factors = () if x.gain is None else (x.gain[:, np.newaxis, np.newaxis],)
            inputs = [self.weight(f"{name}.weight", weight[:, :, np.newaxis, np.newaxis], *factors)]
            if bias.any():
                inputs.append(self.constant(f"{name}.bias", bias.astype(np.float32)))
            out = self.node("Conv", x.name, *inputs, kernel_shape=[1, 1])
        return replace(x, name=out, channels=len(weight), gain=None, shift=None)

    def convolution(self, x: Feature, conv: nn.Conv2d) -> Feature:
        """Write a convolution of maps whose zero padding must see what is owed applied."""
        x = self.settled(self.in_layout(x, channels_last=False))
        name = self._names[conv]
        inputs = [self.weight(f"{name}.weight", _array(conv.weight))]
        if conv.bias is not None:
            inputs.append(self.constant(f"{name}.bias", _array(conv.bias)))
        kernel, stride, padding = conv.kernel_size, conv.stride, _pair(conv.padding)
        out = self.node(
            "Conv",
            x.name,
            *inputs,
            kernel_shape=list(kernel),
            strides=list(stride),
            pads=[*padding, *padding],
            group=conv.groups,
        )
        height, width = ((n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.size, padding, kernel, stride, strict=True))
        return replace(x, name=out, channels=conv.out_channels, size=(height, width))

    def norm(self, x: Feature, norm: nn.Module) -> Feature:
        """Write a norm: over the channels of each position, or over everything in a picture."""
        if isinstance(norm, nn.Identity):
            return x
        if isinstance(norm, LayerNormGeneral):
            return self._norm_of_a_picture(self.settled(x), norm)
        x = self.settled(self.in_layout(x, channels_last=True))
        return replace(x, name=self.layer_norm(x.name, norm))

    def layer_norm(self, x: str, norm: nn.Module) -> str:
        """Write a norm over the last dimension."""
        assert isinstance(norm, LayerNormWithoutBias | nn.LayerNorm)
        name = self._names[norm]
        inputs = [self.constant(f"{name}.weight", _array(norm.weight))]
        if isinstance(norm, nn.LayerNorm):
            inputs.append(self.constant(f"{name}.bias", _array(norm.bias)))
        return self.node("LayerNormalization", x, *inputs, axis=-1, epsilon=norm.eps)

    def _norm_of_a_picture(self, x: Feature, norm: LayerNormGeneral) -> Feature:
        """As an instance norm of one long channel; weight and bias stay owed."""
        assert tuple(norm.normalized_dim) == (1, 2, 3)
        height, width = x.size
        one = self.constant("ones_1", np.ones(1, np.float32))
        zero = self.constant("zeros_1", np.zeros(1, np.float32))
        flat = self.node("Reshape", x.name, self.numbers(-1, 1, height * width * x.channels))
        flat = self.node("InstanceNormalization", flat, one, zero, epsilon=norm.eps)
        shape = (height, width, x.channels) if x.channels_last else (x.channels, height, width)
        return replace(
            x,
            name=self.node("Reshape", flat, self.numbers(-1, *shape)),
            gain=_array(norm.weight),
            shift=None if norm.bias is None else _array(norm.bias),
        )

    def activation(self, x: Feature, activation: nn.Module) -> Feature:
        """Write an activation; the scale and bias of StarReLU stay owed."""
        if isinstance(activation, nn.GELU):
            return replace(x, name=self.node("Gelu", x.name))
        assert isinstance(activation, StarReLU | SquaredReLU)
        x = replace(x, name=self.squared_relu(x.name))
        if isinstance(activation, StarReLU):
            x = replace(x, gain=_array(activation.scale), shift=_array(activation.bias))
        return x

    def squared_relu(self, x: str) -> str:
        """Write relu(x) * relu(x)."""
        positive = self.node("Relu", x)
        return self.node("Mul", positive, positive)

    # Token mixers: Feature in, Feature out, both in the stage's layout.

    def token_mixer(self, x: Feature, mixer: nn.Module) -> Feature:
        """Write a token mixer."""
        match mixer:
            case IdentityMixing():
                return x
            case RandomMixing():
                return self.random_mixing(x, mixer)
            case Pooling():
                return self.pooling(x, mixer)
            case SepConv():
                return self.separable_convolution(x, mixer)
            case Attention():
                return self.attention(x, mixer)
        raise NotImplementedError(type(mixer).__name__)

    def random_mixing(self, x: Feature, mixer: RandomMixing) -> Feature:
        """Mix positions by the frozen matrix; factors per channel commute with it, offsets would not."""
        assert x.shift is None
        height, width = x.size
        tokens = self.node("Reshape", x.name, self.numbers(-1, height * width, x.channels))
        matrix = self.weight(f"{self._names[mixer]}.random_matrix", _array(mixer.random_matrix))
        mixed = self.node("MatMul", matrix, tokens)
        return replace(x, name=self.node("Reshape", mixed, self.numbers(-1, height, width, x.channels)))

    def pooling(self, x: Feature, mixer: Pooling) -> Feature:
        """Subtract each position from its neighbourhood's mean; an offset per channel cancels out."""
        pool = mixer.pool
        size, padding = int(pool.kernel_size), int(pool.padding)  # type: ignore[arg-type]
        mean = self.node(
            "AveragePool",
            x.name,
            kernel_shape=[size] * 2,
            pads=[padding] * 4,
            strides=[1, 1],
            count_include_pad=int(pool.count_include_pad),
        )
        return replace(x, name=self.node("Sub", mean, x.name), shift=None)

    def separable_convolution(self, x: Feature, mixer: SepConv) -> Feature:
        """Expand, activate, convolve each channel, project."""
        name = self._names[mixer]
        x = self.activation(self.linear(x, f"{name}.pwconv1", _array(mixer.pwconv1.weight)), mixer.act1)
        return self.linear(self.convolution(x, mixer.dwconv), f"{name}.pwconv2", _array(mixer.pwconv2.weight))

    def attention(self, x: Feature, mixer: Attention) -> Feature:
        """Attend in each head; three products instead of one for all spare the copies that taking them apart makes."""
        name, (height, width), heads, dim = self._names[mixer], x.size, mixer.num_heads, mixer.head_dim
        query, key, value = np.split(_array(mixer.qkv.weight), 3)
        split = self.numbers(-1, height * width, heads, dim)
        scale = np.full(1, dim**-0.5, np.float32)
        gain = scale if x.gain is None else x.gain * scale

        def of_heads(x: Feature, part: str, weight: Array, perm: list[int]) -> str:
            projected = self.linear(x, f"{name}.{part}", weight)
            return self.node("Transpose", self.node("Reshape", projected.name, split), perm=perm)

        q = of_heads(replace(x, gain=gain), "q", query, [0, 2, 1, 3])
        k = of_heads(x, "k", key, [0, 2, 3, 1])
        v = of_heads(x, "v", value, [0, 2, 1, 3])
        attended = self.node("MatMul", self.node("Softmax", self.node("MatMul", q, k), axis=-1), v)
        attended = self.node("Transpose", attended, perm=[0, 2, 1, 3])
        joined = self.node("Reshape", attended, self.numbers(-1, height, width, heads * dim))
        x = replace(x, name=joined, channels=heads * dim, gain=None, shift=None)
        return self.linear(x, f"{name}.proj", _array(mixer.proj.weight))

    def mlp(self, x: Feature, mlp: nn.Module) -> Feature:
        """Write a block's channel MLP."""
        assert isinstance(mlp, Mlp)
        name = self._names[mlp]
        x = self.activation(self.linear(x, f"{name}.fc1", _array(mlp.fc1.weight), mlp.fc1.bias), mlp.act)
        return self.linear(x, f"{name}.fc2", _array(mlp.fc2.weight), mlp.fc2.bias)

    def block(self, x: Feature, block: MetaFormerBlock) -> Feature:
        """Write a block; it leaves the layout as it is."""
        mixed = self.token_mixer(self.in_layout(self.norm(x, block.norm1), x.channels_last), block.token_mixer)
        x = self.shortcut(x, block.res_scale1, mixed, block.layer_scale1)
        transformed = self.mlp(self.in_layout(self.norm(x, block.norm2), x.channels_last), block.mlp)
        return self.shortcut(x, block.res_scale2, transformed, block.layer_scale2)

    def shortcut(self, x: Feature, res_scale: nn.Module, branch: Feature, layer_scale: nn.Module) -> Feature:
        """Add a branch to what it branched off from, each times its scale."""
        kept, added = self.settled(_times(x, res_scale)), self.settled(_times(branch, layer_scale))
        return replace(kept, name=self.node("Add", kept.name, added.name))

    def downsampling(self, x: Feature, layer: Downsampling) -> Feature:
        """Write the convolution before a stage, with its norms."""
        return self.norm(self.convolution(self.norm(x, layer.pre_norm), layer.conv), layer.post_norm)

    def backbone(self, model: MetaFormer, input_size: tuple[int, int, int]) -> None:
        """Write everything from `input` to `logits`."""
        channels, height, width = input_size
        x = Feature("input", channels, (height, width), channels_last=False)
        for downsample, stage in zip(model.downsample_layers, model.stages, strict=True):
            assert isinstance(downsample, Downsampling)
            assert isinstance(stage, nn.Sequential)
            x = self.downsampling(x, downsample)
            x = self.in_layout(x, channels_last=not isinstance(stage[0].token_mixer, _CHANNELS_FIRST))
            for block in stage:
                assert isinstance(block, MetaFormerBlock)
                x = self.block(x, block)
        pooled = self.node("GlobalAveragePool", self.in_layout(x, channels_last=False).name)
        features = self.layer_norm(self.node("Flatten", pooled), model.norm)
        self.head(features, model.head)

    def head(self, x: str, head: nn.Module) -> None:
        """Write the head on features (N, C)."""
        if isinstance(head, MlpHead):
            hidden = self.squared_relu(self.dense(x, head.fc1))
            self.dense(self.layer_norm(hidden, head.norm), head.fc2, "logits")
        else:
            assert isinstance(head, nn.Linear)
            self.dense(x, head, "logits")

    def dense(self, x: str, layer: nn.Linear, name: str = "") -> str:
        """Write a linear layer on (N, C)."""
        prefix = self._names[layer]
        weight = self.weight(f"{prefix}.weight", _array(layer.weight))
        return self.node("Gemm", x, weight, self.constant(f"{prefix}.bias", _array(layer.bias)), name=name, transB=1)


def _times(x: Feature, scale: nn.Module) -> Feature:
    if not isinstance(scale, Scale):
        return x
    factor = _array(scale.scale)
    return replace(
        x,
        gain=factor if x.gain is None else x.gain * factor,
        shift=None if x.shift is None else x.shift * factor,
    )


def _array(tensor: torch.Tensor) -> Array:
    return tensor.detach().float().numpy()


def _per_channel(values: Array, channels: int) -> Array:
    return np.ascontiguousarray(np.broadcast_to(values, channels))


def _pair(padding: Any) -> tuple[int, int]:
    return padding if isinstance(padding, tuple) else (padding, padding)
