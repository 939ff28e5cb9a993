"""The ONNX graph of a backbone for inference, written node by node rather than by an exporter.

Three optimisations save passes over memory between the matrix products:

- A tensor carries a pending factor and offset per channel (`Feature.gain`, `Feature.shift`): the scale and bias of
  StarReLU, the weight and bias of a norm over all dimensions, layer scale. The next linear layer folds them into its
  weights. A layer norm keeps its weight, because the operator multiplies in any case.
- A stage that convolves or pools keeps its feature maps channels first, (N, C, H, W), with 1x1 convolutions for linear
  layers: ONNX Runtime then computes convolutions, ReLU and shortcut additions without leaving its blocked layout. All
  other stages keep channels last and multiply matrices.
- Squares are products.

Only standard ONNX operators are used, so that every runtime can read the graph. Global pooling is GlobalAveragePool:
ONNX Runtime's ReduceMean sums in another order for a batch of one, so logits would depend on the batch size.
onnx takes long to import: import this module inside functions only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from mfcli.models.parameters import HEAD_DIM
from mfcli.models.registry import Architecture, Family

OPSET = 20
"""The first with Gelu; supported by onnxruntime 1.20 and openvino 2024.6."""

IR_VERSION = 9
"""The IR version of this opset."""

Array = NDArray[np.float32]
Part = bytes | memoryview

_NORM_EPS, _V1_NORM_EPS, _HEAD_NORM_EPS = 1e-6, 1e-5, 1e-5
"""Added to the variance: in the backbone, in the blocks of PoolFormer v1, and in a two-layer head."""
_POOLING = (Family.POOLFORMER, Family.POOLFORMERV2)
_POOL_SIZE = 3


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


def write_graph(
    architecture: Architecture,
    weights: Mapping[str, Array],
    input_size: tuple[int, int, int],
    *,
    half_weights: bool = False,
) -> list[Part]:
    """Return the graph of a backbone: `input` float32 (N, C, H, W) to `logits` float32 (N, classes), N dynamic.

    The parts, one after the other, are an ONNX file; most of them are the arrays themselves, which protobuf's own
    serialisation would copy three times.

    Args:
        architecture: the backbone.
        weights: float32 arrays by parameter, as in `models.parameters.parameter_shapes`; the graph's constants have
            these names.
        input_size: (C, H, W) of a picture.
        half_weights: store weights as float16 if they are exactly representable; they are computed with as float32.
    """
    num_classes = len(weights["head.fc2.weight" if architecture.mlp_head else "head.weight"])
    picture = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *input_size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", num_classes])
    writer = _Writer(architecture, weights, half_weights)
    writer.write_backbone(input_size)
    graph: list[Part] = [GraphProto(node=writer.nodes, name="metaformer").SerializeToString()]
    for name, values in writer.constants.items():
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = TensorProto(dims=values.shape, data_type=kind, name=name).SerializeToString()
        tensor += _start_field(TensorProto, "raw_data", values.nbytes)
        graph += [_start_field(GraphProto, "initializer", len(tensor) + values.nbytes) + tensor, values.data]
    graph.append(GraphProto(input=[picture], output=[logits]).SerializeToString())
    size_bytes = sum(memoryview(part).nbytes for part in graph)
    head = ModelProto(ir_version=IR_VERSION, producer_name="mfcli").SerializeToString()
    tail = ModelProto(opset_import=[helper.make_opsetid("", OPSET)]).SerializeToString()
    return [head + _start_field(ModelProto, "graph", size_bytes), *graph, tail]


def _start_field(message: Any, name: str, size_bytes: int) -> bytes:
    """Return what protobuf writes before a field of bytes, or of another message: its number, wire type and size."""
    tag = message.DESCRIPTOR.fields_by_name[name].number << 3 | 2
    encoded = bytearray()
    for number in (tag, size_bytes):
        while number > 0x7F:
            encoded.append(number & 0x7F | 0x80)
            number >>= 7
        encoded.append(number)
    return bytes(encoded)


class _Writer:
    """Writes the nodes and constants of a graph, one layer after another; layers are named as their parameters."""

    def __init__(self, architecture: Architecture, weights: Mapping[str, Array], half_weights: bool) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self._architecture = architecture
        self._weights = weights
        self._half_weights = half_weights

    def add_node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with one output; return the output's name."""
        name = name or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def add_constant(self, name: str, values: NDArray[Any]) -> str:
        """Add a constant, unless there is one of this name; return its name."""
        if name not in self.constants:
            self.constants[name] = np.ascontiguousarray(values)
        return name

    def add_integers(self, *values: int) -> str:
        """Add a constant of integers, such as a shape."""
        return self.add_constant(f"numbers_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def add_weight(self, name: str, values: Array, factor: Array | None = None) -> str:
        """Add a weight multiplied by a factor that broadcasts to it.

        If it is stored as float16, the graph holds the multiplication, and the runtime folds it on loading.
        """
        if not (self._half_weights and np.array_equal(values.astype(np.float16).astype(np.float32), values)):
            return self.add_constant(name, values if factor is None else np.multiply(values, factor, order="C"))
        stored = self.add_constant(f"{name}.half", values.astype(np.float16))
        result = self.add_node("Cast", stored, name=f"{name}.float", to=TensorProto.FLOAT)
        if factor is not None:
            result = self.add_node("Mul", result, self.add_constant(f"{name}.factor0", factor))
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

    def write_linear(self, x: Feature, name: str, weight: Array | None = None) -> Feature:
        """Write a linear layer over the channels: weight float32 (out, in), by default that of the layer's name."""
        weight = self._weights[f"{name}.weight"] if weight is None else weight
        own_bias = self._weights.get(f"{name}.bias")
        bias = np.zeros(len(weight)) if own_bias is None else own_bias.astype(np.float64)
        if x.shift is not None:
            bias += weight.astype(np.float64) @ _broadcast(x.shift, x.channels)
        if x.channels_last:
            gain = None if x.gain is None else x.gain[:, np.newaxis]
            out = self.add_node("MatMul", x.name, self.add_weight(f"{name}.weight", weight.T, gain))
            if bias.any():
                out = self.add_node("Add", out, self.add_constant(f"{name}.bias", bias.astype(np.float32)))
        else:
            gain = None if x.gain is None else x.gain[:, np.newaxis, np.newaxis]
            inputs = [self.add_weight(f"{name}.weight", weight[:, :, np.newaxis, np.newaxis], gain)]
            if bias.any():
                inputs.append(self.add_constant(f"{name}.bias", bias.astype(np.float32)))
            out = self.add_node("Conv", x.name, *inputs, kernel_shape=[1, 1])
        return replace(x, name=out, channels=len(weight), gain=None, shift=None)

    def write_convolution(self, x: Feature, name: str, stride: int, padding: int, groups: int = 1) -> Feature:
        """Write a convolution; because of its zero padding, pending gain and shift are applied before it."""
        x = self.apply_pending(self.convert_layout(x, channels_last=False))
        weight, bias = self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias")
        inputs = [self.add_weight(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(self.add_constant(f"{name}.bias", bias))
        channels, _, kernel_size, _ = weight.shape
        out = self.add_node(
            "Conv",
            x.name,
            *inputs,
            kernel_shape=[kernel_size] * 2,
            strides=[stride] * 2,
            pads=[padding] * 4,
            group=groups,
        )
        height, width = ((side + 2 * padding - kernel_size) // stride + 1 for side in x.size)
        return replace(x, name=out, channels=channels, size=(height, width))

    def write_channel_norm(self, x: Feature, name: str) -> Feature:
        """Write a norm over the channels of each position, if there is one of this name."""
        if f"{name}.weight" not in self._weights:
            return x
        x = self.apply_pending(self.convert_layout(x, channels_last=True))
        return replace(x, name=self.write_layer_norm(x.name, name, _NORM_EPS))

    def write_layer_norm(self, x: str, name: str, eps: float) -> str:
        """Write a norm over the last dimension."""
        inputs = [self.add_constant(f"{name}.weight", self._weights[f"{name}.weight"])]
        if (bias := self._weights.get(f"{name}.bias")) is not None:
            inputs.append(self.add_constant(f"{name}.bias", bias))
        return self.add_node("LayerNormalization", x, *inputs, axis=-1, epsilon=eps)

    def write_block_norm(self, x: Feature, name: str) -> Feature:
        """Write the norm of a block's branch: per position, or over the whole feature map in simple families."""
        if self._architecture.family in (Family.CONVFORMER, Family.CAFORMER):
            return self.write_channel_norm(x, name)
        return self._write_whole_image_norm(self.apply_pending(x), name)

    def _write_whole_image_norm(self, x: Feature, name: str) -> Feature:
        """Write it as an instance norm of a single channel; weight and bias become pending."""
        eps = _V1_NORM_EPS if self._architecture.family is Family.POOLFORMER else _NORM_EPS
        height, width = x.size
        one = self.add_constant("ones_1", np.ones(1, np.float32))
        zero = self.add_constant("zeros_1", np.zeros(1, np.float32))
        flat = self.add_node("Reshape", x.name, self.add_integers(-1, 1, height * width * x.channels))
        flat = self.add_node("InstanceNormalization", flat, one, zero, epsilon=eps)
        shape = (height, width, x.channels) if x.channels_last else (x.channels, height, width)
        return replace(
            x,
            name=self.add_node("Reshape", flat, self.add_integers(-1, *shape)),
            gain=self._weights[f"{name}.weight"],
            shift=self._weights.get(f"{name}.bias"),
        )

    def write_activation(self, x: Feature, name: str) -> Feature:
        """Write StarReLU, whose scale and bias become pending, or GELU where the activation has no parameters."""
        if f"{name}.scale" not in self._weights:
            return replace(x, name=self.add_node("Gelu", x.name))
        x = replace(x, name=self.write_squared_relu(x.name))
        return replace(x, gain=self._weights[f"{name}.scale"], shift=self._weights[f"{name}.bias"])

    def write_squared_relu(self, x: str) -> str:
        """Write relu(x) * relu(x)."""
        positive = self.add_node("Relu", x)
        return self.add_node("Mul", positive, positive)

    # Token mixers: input and output have the stage's layout.

    def write_token_mixer(self, x: Feature, name: str) -> Feature:
        """Write the token mixer whose parameters exist; without any it is pooling or the identity."""
        if f"{name}.random_matrix" in self._weights:
            return self.write_random_mixing(x, name)
        if f"{name}.dwconv.weight" in self._weights:
            return self.write_separable_convolution(x, name)
        if f"{name}.qkv.weight" in self._weights:
            return self.write_attention(x, name)
        return self.write_pooling(x) if self._architecture.family in _POOLING else x

    def write_random_mixing(self, x: Feature, name: str) -> Feature:
        """Mix positions by the frozen matrix; a pending gain commutes with it, a shift would not."""
        assert x.shift is None
        height, width = x.size
        tokens = self.add_node("Reshape", x.name, self.add_integers(-1, height * width, x.channels))
        matrix = self.add_weight(f"{name}.random_matrix", self._weights[f"{name}.random_matrix"])
        mixed = self.add_node("MatMul", matrix, tokens)
        return replace(x, name=self.add_node("Reshape", mixed, self.add_integers(-1, height, width, x.channels)))

    def write_pooling(self, x: Feature) -> Feature:
        """Subtract each position from its neighbourhood's mean; a pending shift cancels out."""
        mean = self.add_node(
            "AveragePool",
            x.name,
            kernel_shape=[_POOL_SIZE] * 2,
            pads=[_POOL_SIZE // 2] * 4,
            strides=[1, 1],
            count_include_pad=0,
        )
        return replace(x, name=self.add_node("Sub", mean, x.name), shift=None)

    def write_separable_convolution(self, x: Feature, name: str) -> Feature:
        """Expand, activate, convolve each channel, project."""
        x = self.write_activation(self.write_linear(x, f"{name}.pwconv1"), f"{name}.act1")
        padding = self._architecture.kernel_size // 2
        x = self.write_convolution(x, f"{name}.dwconv", stride=1, padding=padding, groups=x.channels)
        return self.write_linear(x, f"{name}.pwconv2")

    def write_attention(self, x: Feature, name: str) -> Feature:
        """Attend in each head; separate products for query, key and value avoid the copies of splitting a joint one."""
        (height, width), dim = x.size, HEAD_DIM
        query, key, value = np.split(self._weights[f"{name}.qkv.weight"], 3)
        heads = len(query) // dim
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
        return self.write_linear(x, f"{name}.proj")

    def write_mlp(self, x: Feature, name: str) -> Feature:
        """Write a block's channel MLP."""
        return self.write_linear(
            self.write_activation(self.write_linear(x, f"{name}.fc1"), f"{name}.act"), f"{name}.fc2"
        )

    def write_block(self, x: Feature, name: str) -> Feature:
        """Write a block; its output has the layout of its input."""
        mixed = self.convert_layout(self.write_block_norm(x, f"{name}.norm1"), x.channels_last)
        x = self.write_shortcut(x, self.write_token_mixer(mixed, f"{name}.token_mixer"), name, 1)
        transformed = self.convert_layout(self.write_block_norm(x, f"{name}.norm2"), x.channels_last)
        return self.write_shortcut(x, self.write_mlp(transformed, f"{name}.mlp"), name, 2)

    def write_shortcut(self, x: Feature, branch: Feature, block: str, number: int) -> Feature:
        """Add a branch to its shortcut, each multiplied by its scale where it has one."""
        kept = self.apply_pending(self._multiply_pending(x, f"{block}.res_scale{number}"))
        added = self.apply_pending(self._multiply_pending(branch, f"{block}.layer_scale{number}"))
        return replace(kept, name=self.add_node("Add", kept.name, added.name))

    def _multiply_pending(self, x: Feature, name: str) -> Feature:
        factor = self._weights.get(f"{name}.scale")
        if factor is None:
            return x
        return replace(
            x,
            gain=factor if x.gain is None else x.gain * factor,
            shift=None if x.shift is None else x.shift * factor,
        )

    def write_downsampling(self, x: Feature, stage: int) -> Feature:
        """Write the convolution before a stage, with its norms."""
        name = f"downsample_layers.{stage}"
        stride, padding = (2, 1) if stage else (self._architecture.stem_stride, self._architecture.stem_padding)
        x = self.write_convolution(self.write_channel_norm(x, f"{name}.pre_norm"), f"{name}.conv", stride, padding)
        return self.write_channel_norm(x, f"{name}.post_norm")

    def write_backbone(self, input_size: tuple[int, int, int]) -> None:
        """Write everything from `input` to `logits`."""
        channels, height, width = input_size
        x = Feature("input", channels, (height, width), channels_last=False)
        for stage, depth in enumerate(self._architecture.depths):
            x = self.write_downsampling(x, stage)
            x = self.convert_layout(x, channels_last=not self._is_channels_first(stage))
            for block in range(depth):
                x = self.write_block(x, f"stages.{stage}.{block}")
        pooled = self.add_node("GlobalAveragePool", self.convert_layout(x, channels_last=False).name)
        self.write_head(self.write_layer_norm(self.add_node("Flatten", pooled), "norm", _NORM_EPS))

    def _is_channels_first(self, stage: int) -> bool:
        """Return whether the token mixers of a stage, which convolve or pool, work on feature maps."""
        is_convolving = f"stages.{stage}.0.token_mixer.dwconv.weight" in self._weights
        return is_convolving or self._architecture.family in _POOLING

    def write_head(self, x: str) -> None:
        """Write the head on features (N, C)."""
        if not self._architecture.mlp_head:
            self.write_dense(x, "head", "logits")
            return
        hidden = self.write_squared_relu(self.write_dense(x, "head.fc1"))
        self.write_dense(self.write_layer_norm(hidden, "head.norm", _HEAD_NORM_EPS), "head.fc2", "logits")

    def write_dense(self, x: str, layer: str, name: str = "") -> str:
        """Write a linear layer on (N, C)."""
        weight = self.add_weight(f"{layer}.weight", self._weights[f"{layer}.weight"])
        bias = self.add_constant(f"{layer}.bias", self._weights[f"{layer}.bias"])
        return self.add_node("Gemm", x, weight, bias, name=name, transB=1)


def _broadcast(values: Array, channels: int) -> Array:
    return np.ascontiguousarray(np.broadcast_to(values, channels))
