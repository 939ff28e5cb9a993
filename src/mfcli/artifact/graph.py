"""The ONNX graph of a backbone for inference, written node by node rather than by an exporter.

Three optimisations save passes over memory between the matrix products:

- A tensor carries a pending factor and offset per channel (`Feature.gain`, `Feature.shift`): the scale and bias of
  StarReLU, the weight and bias of a norm over all dimensions, layer scale. The next linear layer folds them into its
  weights. A layer norm keeps its weight, because the operator multiplies in any case.
- A stage that convolves or pools keeps its feature maps channels first, (N, C, H, W), with 1x1 convolutions for linear
  layers: ONNX Runtime then computes convolutions, ReLU and shortcut additions without leaving its blocked layout. All
  other stages keep channels last and multiply matrices.
- Squares are products.

Only standard ONNX operators are used, for every runtime. Global pooling is GlobalAveragePool: ONNX Runtime's ReduceMean
sums in another order for a batch of one. torch is imported here: import this module inside functions only.
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
"""The first with Gelu; supported by onnxruntime 1.20 and openvino 2024.6."""
IR_VERSION = 9
"""The IR version of this opset."""

Array = NDArray[np.float32]

_CHANNELS_FIRST = (SepConv, Pooling)
"""Token mixers that work on feature maps: their stages stay channels first."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A tensor between two layers; its value is `gain * tensor + shift`.

    Attributes:
        name: the tensor, float32 (N, H, W, C) or (N, C, H, W).
        channels: C.
        size: (H, W).
        channels_last: whether it is (N, H, W, C).
        gain: pending factor per channel, float32 (C,) or (1,); None for 1.
        shift: pending offset per channel, of the same shape; None for 0.
    """

    name: str
    channels: int
    size: tuple[int, int]
    channels_last: bool
    gain: Array | None = None
    shift: Array | None = None


def write_graph(model: MetaFormer, input_size: tuple[int, int, int], *, half_weights: bool = False) -> ModelProto:
    """Return the graph of a backbone: `input` float32 (N, C, H, W) to `logits` float32 (N, classes), N dynamic.

    Args:
        model: in eval mode; the graph's constants have the names of its parameters.
        input_size: (C, H, W) of a picture.
        half_weights: store weights as float16 if they are exactly representable; they are computed with as float32.
    """
    writer = _Writer(model, half_weights)
    with torch.no_grad():
        writer.write_backbone(model, input_size)
    picture = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *input_size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", model.num_classes])
    graph = helper.make_graph(writer.nodes, "metaformer", [picture], [logits], writer.constants)
    proto = helper.make_model(graph, producer_name="mfcli", opset_imports=[helper.make_opsetid("", OPSET)])
    proto.ir_version = IR_VERSION
    return proto


class _Writer:
    """Collects the nodes and constants of a graph, one module after another."""

    def __init__(self, model: MetaFormer, half_weights: bool) -> None:
        self.nodes: list[Any] = []
        self.constants: list[TensorProto] = []
        self._names = {module: name for name, module in model.named_modules()}
        self._half_weights = half_weights
        self._known: set[str] = set()

    def add_node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with one output; return the output's name."""
        name = name or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def add_constant(self, name: str, values: NDArray[Any]) -> str:
        """Add a constant, unless there is one of this name; return its name."""
        if name not in self._known:
            self._known.add(name)
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add_integers(self, *values: int) -> str:
        """Add a constant of integers, such as a shape."""
        return self.add_constant(f"numbers_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def add_weight(self, name: str, values: Array, *factors: Array) -> str:
        """Add a weight multiplied by factors that broadcast to it.

        If it is stored as float16, the graph holds the multiplication, and the runtime folds it on loading.
        """
        half = values.astype(np.float16)
        if not (self._half_weights and np.array_equal(half.astype(np.float32), values)):
            product = values.astype(np.float64)
            for factor in factors:
                product = product * factor
            return self.add_constant(name, product.astype(np.float32))
        stored = self.add_constant(f"{name}.half", half)
        result = self.add_node("Cast", stored, name=f"{name}.float", to=TensorProto.FLOAT)
        for index, factor in enumerate(factors):
            result = self.add_node("Mul", result, self.add_constant(f"{name}.factor{index}", factor))
        return result

    def convert_layout(self, x: Feature, channels_last: bool) -> Feature:
        """Transpose a tensor if it has the other layout."""
        if x.channels_last == channels_last:
            return x
        perm = [0, 2, 3, 1] if channels_last else [0, 3, 1, 2]
        return replace(x, name=self.add_node("Transpose", x.name, perm=perm), channels_last=channels_last)

    def apply_pending(self, x: Feature) -> Feature:
        """Apply pending gain and shift; channels first by a batch norm, which has a blocked layout in ONNX Runtime."""
        if x.gain is None and x.shift is None:
            return x
        gain = np.ones(1, np.float32) if x.gain is None else x.gain
        shift = np.zeros(1, np.float32) if x.shift is None else x.shift
        name = x.name
        if x.channels_last:
            if x.gain is not None:
                name = self.add_node("Mul", name, self.add_constant(f"{x.name}.gain", gain))
            if shift.any():
                name = self.add_node("Add", name, self.add_constant(f"{x.name}.shift", shift))
        else:
            zeros = self.add_constant(f"zeros_{x.channels}", np.zeros(x.channels, np.float32))
            ones = self.add_constant(f"ones_{x.channels}", np.ones(x.channels, np.float32))
            gain_name = self.add_constant(f"{x.name}.gain", _broadcast(gain, x.channels))
            shift_name = self.add_constant(f"{x.name}.shift", _broadcast(shift, x.channels))
            name = self.add_node("BatchNormalization", name, gain_name, shift_name, zeros, ones, epsilon=0.0)
        return replace(x, name=name, gain=None, shift=None)

    def write_linear(self, x: Feature, name: str, weight: Array, own_bias: torch.Tensor | None = None) -> Feature:
        """Write a linear layer over the channels: weight float32 (out, in)."""
        bias = np.zeros(len(weight)) if own_bias is None else _to_array(own_bias).astype(np.float64)
        if x.shift is not None:
            bias += weight.astype(np.float64) @ _broadcast(x.shift, x.channels)
        if x.channels_last:
            factors = () if x.gain is None else (x.gain[:, np.newaxis],)
            out = self.add_node("MatMul", x.name, self.add_weight(f"{name}.weight", weight.T, *factors))
            if bias.any():
                out = self.add_node("Add", out, self.add_constant(f"{name}.bias", bias.astype(np.float32)))
        else:
            factors = () if x.gain is None else (x.gain[:, np.newaxis, np.newaxis],)
            inputs = [self.add_weight(f"{name}.weight", weight[:, :, np.newaxis, np.newaxis], *factors)]
            if bias.any():
                inputs.append(self.add_constant(f"{name}.bias", bias.astype(np.float32)))
            out = self.add_node("Conv", x.name, *inputs, kernel_shape=[1, 1])
        return replace(x, name=out, channels=len(weight), gain=None, shift=None)

    def write_convolution(self, x: Feature, conv: nn.Conv2d) -> Feature:
        """Write a convolution; because of its zero padding, pending gain and shift are applied before it."""
        x = self.apply_pending(self.convert_layout(x, channels_last=False))
        name = self._names[conv]
        inputs = [self.add_weight(f"{name}.weight", _to_array(conv.weight))]
        if conv.bias is not None:
            inputs.append(self.add_constant(f"{name}.bias", _to_array(conv.bias)))
        kernel, stride, padding = conv.kernel_size, conv.stride, _to_pair(conv.padding)
        out = self.add_node(
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

    def write_norm(self, x: Feature, norm: nn.Module) -> Feature:
        """Write a norm over the channels of each position, or over the whole feature map."""
        if isinstance(norm, nn.Identity):
            return x
        if isinstance(norm, LayerNormGeneral):
            return self._write_whole_image_norm(self.apply_pending(x), norm)
        x = self.apply_pending(self.convert_layout(x, channels_last=True))
        return replace(x, name=self.write_layer_norm(x.name, norm))

    def write_layer_norm(self, x: str, norm: nn.Module) -> str:
        """Write a norm over the last dimension."""
        assert isinstance(norm, LayerNormWithoutBias | nn.LayerNorm)
        name = self._names[norm]
        inputs = [self.add_constant(f"{name}.weight", _to_array(norm.weight))]
        if isinstance(norm, nn.LayerNorm):
            inputs.append(self.add_constant(f"{name}.bias", _to_array(norm.bias)))
        return self.add_node("LayerNormalization", x, *inputs, axis=-1, epsilon=norm.eps)

    def _write_whole_image_norm(self, x: Feature, norm: LayerNormGeneral) -> Feature:
        """Write it as an instance norm of a single channel; weight and bias become pending."""
        assert tuple(norm.normalized_dim) == (1, 2, 3)
        height, width = x.size
        one = self.add_constant("ones_1", np.ones(1, np.float32))
        zero = self.add_constant("zeros_1", np.zeros(1, np.float32))
        flat = self.add_node("Reshape", x.name, self.add_integers(-1, 1, height * width * x.channels))
        flat = self.add_node("InstanceNormalization", flat, one, zero, epsilon=norm.eps)
        shape = (height, width, x.channels) if x.channels_last else (x.channels, height, width)
        return replace(
            x,
            name=self.add_node("Reshape", flat, self.add_integers(-1, *shape)),
            gain=_to_array(norm.weight),
            shift=None if norm.bias is None else _to_array(norm.bias),
        )

    def write_activation(self, x: Feature, activation: nn.Module) -> Feature:
        """Write an activation; scale and bias of StarReLU become pending."""
        if isinstance(activation, nn.GELU):
            return replace(x, name=self.add_node("Gelu", x.name))
        assert isinstance(activation, StarReLU | SquaredReLU)
        x = replace(x, name=self.write_squared_relu(x.name))
        if isinstance(activation, StarReLU):
            x = replace(x, gain=_to_array(activation.scale), shift=_to_array(activation.bias))
        return x

    def write_squared_relu(self, x: str) -> str:
        """Write relu(x) * relu(x)."""
        positive = self.add_node("Relu", x)
        return self.add_node("Mul", positive, positive)

    # Token mixers: input and output have the stage's layout.

    def write_token_mixer(self, x: Feature, mixer: nn.Module) -> Feature:
        """Write a token mixer."""
        match mixer:
            case IdentityMixing():
                return x
            case RandomMixing():
                return self.write_random_mixing(x, mixer)
            case Pooling():
                return self.write_pooling(x, mixer)
            case SepConv():
                return self.write_separable_convolution(x, mixer)
            case Attention():
                return self.write_attention(x, mixer)
        raise NotImplementedError(type(mixer).__name__)

    def write_random_mixing(self, x: Feature, mixer: RandomMixing) -> Feature:
        """Mix positions by the frozen matrix; a pending gain commutes with it, a shift would not."""
        assert x.shift is None
        height, width = x.size
        tokens = self.add_node("Reshape", x.name, self.add_integers(-1, height * width, x.channels))
        matrix = self.add_weight(f"{self._names[mixer]}.random_matrix", _to_array(mixer.random_matrix))
        mixed = self.add_node("MatMul", matrix, tokens)
        return replace(x, name=self.add_node("Reshape", mixed, self.add_integers(-1, height, width, x.channels)))

    def write_pooling(self, x: Feature, mixer: Pooling) -> Feature:
        """Subtract each position from its neighbourhood's mean; a pending shift cancels out."""
        pool = mixer.pool
        size, padding = int(pool.kernel_size), int(pool.padding)  # type: ignore[arg-type]
        mean = self.add_node(
            "AveragePool",
            x.name,
            kernel_shape=[size] * 2,
            pads=[padding] * 4,
            strides=[1, 1],
            count_include_pad=int(pool.count_include_pad),
        )
        return replace(x, name=self.add_node("Sub", mean, x.name), shift=None)

    def write_separable_convolution(self, x: Feature, mixer: SepConv) -> Feature:
        """Expand, activate, convolve each channel, project."""
        name = self._names[mixer]
        x = self.write_activation(self.write_linear(x, f"{name}.pwconv1", _to_array(mixer.pwconv1.weight)), mixer.act1)
        x = self.write_convolution(x, mixer.dwconv)
        return self.write_linear(x, f"{name}.pwconv2", _to_array(mixer.pwconv2.weight))

    def write_attention(self, x: Feature, mixer: Attention) -> Feature:
        """Attend in each head; separate products for query, key and value avoid the copies of splitting a joint one."""
        name, (height, width), heads, dim = self._names[mixer], x.size, mixer.num_heads, mixer.head_dim
        query, key, value = np.split(_to_array(mixer.qkv.weight), 3)
        split = self.add_integers(-1, height * width, heads, dim)
        scale = np.full(1, dim**-0.5, np.float32)
        gain = scale if x.gain is None else x.gain * scale

        def project_heads(x: Feature, part: str, weight: Array, perm: list[int]) -> str:
            projected = self.write_linear(x, f"{name}.{part}", weight)
            return self.add_node("Transpose", self.add_node("Reshape", projected.name, split), perm=perm)

        q = project_heads(replace(x, gain=gain), "q", query, [0, 2, 1, 3])
        k = project_heads(x, "k", key, [0, 2, 3, 1])
        v = project_heads(x, "v", value, [0, 2, 1, 3])
        attended = self.add_node("MatMul", self.add_node("Softmax", self.add_node("MatMul", q, k), axis=-1), v)
        attended = self.add_node("Transpose", attended, perm=[0, 2, 1, 3])
        joined = self.add_node("Reshape", attended, self.add_integers(-1, height, width, heads * dim))
        x = replace(x, name=joined, channels=heads * dim, gain=None, shift=None)
        return self.write_linear(x, f"{name}.proj", _to_array(mixer.proj.weight))

    def write_mlp(self, x: Feature, mlp: nn.Module) -> Feature:
        """Write a block's channel MLP."""
        assert isinstance(mlp, Mlp)
        name = self._names[mlp]
        x = self.write_activation(self.write_linear(x, f"{name}.fc1", _to_array(mlp.fc1.weight), mlp.fc1.bias), mlp.act)
        return self.write_linear(x, f"{name}.fc2", _to_array(mlp.fc2.weight), mlp.fc2.bias)

    def write_block(self, x: Feature, block: MetaFormerBlock) -> Feature:
        """Write a block; its output has the layout of its input."""
        normed = self.convert_layout(self.write_norm(x, block.norm1), x.channels_last)
        mixed = self.write_token_mixer(normed, block.token_mixer)
        x = self.write_shortcut(x, block.res_scale1, mixed, block.layer_scale1)
        normed = self.convert_layout(self.write_norm(x, block.norm2), x.channels_last)
        return self.write_shortcut(x, block.res_scale2, self.write_mlp(normed, block.mlp), block.layer_scale2)

    def write_shortcut(self, x: Feature, res_scale: nn.Module, branch: Feature, layer_scale: nn.Module) -> Feature:
        """Add a branch to its shortcut, each multiplied by its scale."""
        x = self.apply_pending(_multiply_pending(x, res_scale))
        branch = self.apply_pending(_multiply_pending(branch, layer_scale))
        return replace(x, name=self.add_node("Add", x.name, branch.name))

    def write_downsampling(self, x: Feature, layer: Downsampling) -> Feature:
        """Write the convolution before a stage, with its norms."""
        return self.write_norm(self.write_convolution(self.write_norm(x, layer.pre_norm), layer.conv), layer.post_norm)

    def write_backbone(self, model: MetaFormer, input_size: tuple[int, int, int]) -> None:
        """Write everything from `input` to `logits`."""
        channels, height, width = input_size
        x = Feature("input", channels, (height, width), channels_last=False)
        for downsample, stage in zip(model.downsample_layers, model.stages, strict=True):
            assert isinstance(downsample, Downsampling)
            assert isinstance(stage, nn.Sequential)
            x = self.write_downsampling(x, downsample)
            x = self.convert_layout(x, channels_last=not isinstance(stage[0].token_mixer, _CHANNELS_FIRST))
            for block in stage:
                assert isinstance(block, MetaFormerBlock)
                x = self.write_block(x, block)
        pooled = self.add_node("GlobalAveragePool", self.convert_layout(x, channels_last=False).name)
        features = self.write_layer_norm(self.add_node("Flatten", pooled), model.norm)
        self.write_head(features, model.head)

    def write_head(self, x: str, head: nn.Module) -> None:
        """Write the head on features (N, C)."""
        if isinstance(head, MlpHead):
            hidden = self.write_squared_relu(self.write_dense(x, head.fc1))
            self.write_dense(self.write_layer_norm(hidden, head.norm), head.fc2, "logits")
        else:
            assert isinstance(head, nn.Linear)
            self.write_dense(x, head, "logits")

    def write_dense(self, x: str, layer: nn.Linear, name: str = "") -> str:
        """Write a linear layer on (N, C)."""
        prefix = self._names[layer]
        weight = self.add_weight(f"{prefix}.weight", _to_array(layer.weight))
        bias = self.add_constant(f"{prefix}.bias", _to_array(layer.bias))
        return self.add_node("Gemm", x, weight, bias, name=name, transB=1)


def _multiply_pending(x: Feature, scale: nn.Module) -> Feature:
    if not isinstance(scale, Scale):
        return x
    factor = _to_array(scale.scale)
    return replace(
        x,
        gain=factor if x.gain is None else x.gain * factor,
        shift=None if x.shift is None else x.shift * factor,
    )


def _to_array(tensor: torch.Tensor) -> Array:
    return tensor.detach().float().numpy()


def _broadcast(values: Array, channels: int) -> Array:
    return np.ascontiguousarray(np.broadcast_to(values, channels))


def _to_pair(padding: Any) -> tuple[int, int]:
    return padding if isinstance(padding, tuple) else (padding, padding)
