"""Artifacts of the user's own classes: a base model's graph with another head.

What computes the features stays, bit for bit; the head's nodes and constants are replaced by one linear layer. onnx
takes long to import: import this module inside functions only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, TensorProto, helper

from mfcli.artifact.file import METADATA_PREFIX, Artifact
from mfcli.artifact.outputs import find_head
from mfcli.files import sha256_of_json
from mfcli.models.abstention import Familiarity
from mfcli.results import Label


def replace_head(
    base: Artifact,
    name: str,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    labels: Sequence[Label],
    weights_sha256: str,
    familiarity: Familiarity,
    fields: Mapping[str, Any],
) -> bytes:
    """Return the ONNX model of a base model with another head.

    Args:
        base: what computes the features.
        name: the new model's name.
        weight: float32 (classes, dim).
        bias: float32 (classes,).
        labels: one per class.
        weights_sha256: digest of the new head.
        familiarity: what the output `distance` is computed by.
        fields: more metadata properties; JSON values.

    Raises:
        OSError: the base cannot be read.
    """
    proto = onnx.load(base.path)
    graph = proto.graph
    features = find_head(graph).input[0]
    _remove_head(graph, features)
    for constant, values in (("head.weight", weight), ("head.bias", bias)):
        graph.initializer.add(
            name=constant, dims=values.shape, data_type=TensorProto.FLOAT, raw_data=values.astype("<f4").tobytes()
        )
    inputs = [features, "head.weight", "head.bias"]
    graph.node.append(helper.make_node("Gemm", inputs, ["logits"], name="logits", transB=1))
    _add_distance(graph, features, familiarity)
    graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(weight)]))
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    pairs = [(label.wnid, label.name) for label in labels]
    key = sha256_of_json([base.key, weights_sha256, pairs])
    own = {
        "variant": name,
        "key": key,
        "weights_sha256": weights_sha256,
        "source_url": None,
        "labels": pairs,
        "check": {},
        "preprocess": asdict(base.plan),
        **fields,
    }
    properties |= {METADATA_PREFIX + field: json.dumps(value, sort_keys=True) for field, value in own.items()}
    del proto.metadata_props[:]
    for field, text in properties.items():
        proto.metadata_props.add(key=field, value=text)
    return bytes(proto.SerializeToString(deterministic=True))


def _add_distance(graph: GraphProto, features: str, familiarity: Familiarity) -> None:
    """Add the output `distance`, (N, 1), see `models.abstention.Familiarity`."""
    centres = familiarity.centres
    constants: dict[str, NDArray[Any]] = {
        "familiarity.axes": familiarity.axes,
        "familiarity.offset": familiarity.offset,
        "familiarity.centres": -2 * centres,
        "familiarity.squares": np.square(centres).sum(1),
        "familiarity.dimension": np.array([1], np.int64),
    }
    for name, values in constants.items():
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        graph.initializer.add(name=name, dims=values.shape, data_type=kind, raw_data=values.tobytes())
    for op, inputs, name in (
        ("Gemm", [features, "familiarity.axes", "familiarity.offset"], "moved"),
        ("Gemm", ["moved", "familiarity.centres", "familiarity.squares"], "differences"),
        ("ReduceMin", ["differences", "familiarity.dimension"], "least"),
        ("ReduceSumSquare", ["moved", "familiarity.dimension"], "norm"),
        ("Add", ["least", "norm"], "distance"),
    ):
        transposed = {"transB": 1} if "familiarity.centres" in inputs else {}
        graph.node.append(helper.make_node(op, inputs, [name], name=name, **transposed))
    graph.output.append(helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["N", 1]))


def _remove_head(graph: GraphProto, features: str) -> None:
    """Remove every node and constant that `features` does not depend on."""
    needed, kept = {features}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    constants = [constant for constant in graph.initializer if constant.name in needed]
    nodes = list(reversed(kept))
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
