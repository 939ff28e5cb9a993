"""Outputs that an artifact's graph computes besides the logits, added when it is loaded.

The file has the output `logits` alone, so that predictions neither compute nor carry anything else. onnx takes long to
import: import this module inside functions only.
"""

from collections.abc import Iterable
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, NodeProto, TensorProto, helper

from mfcli.errors import ModelError
from mfcli.hub.bundled import REINSTALL
from mfcli.results import Output


def read_with_outputs(path: Path, outputs: Iterable[Output]) -> bytes:
    """Return an artifact's ONNX model with more outputs after `logits`, in the given order and of these names.

    Raises:
        ModelError: it cannot be read, or has another graph.
    """
    try:
        proto = onnx.load(path)
        for output in outputs:
            name = _find_tensor(proto.graph, output)
            proto.graph.node.append(helper.make_node("Identity", [name], [output.value], name=output.value))
            proto.graph.output.append(helper.make_tensor_value_info(output.value, TensorProto.FLOAT, None))
        return bytes(proto.SerializeToString())
    except OSError as error:
        raise ModelError(f"cannot read the artifact {path}: {error.strerror}", REINSTALL) from error
    except (DecodeError, StopIteration) as error:
        raise ModelError(f"{path} is damaged, or not an artifact of mfcli", REINSTALL) from error


def find_head(graph: GraphProto) -> NodeProto:
    """Return the first node of the head: the only linear layers on (N, C) are the head's.

    Raises:
        StopIteration: there is none.
    """
    return next(node for node in graph.node if node.op_type == "Gemm")


def _find_tensor(graph: GraphProto, output: Output) -> str:
    if output is Output.FEATURES:
        return str(find_head(graph).input[0])
    return str(next(node for node in graph.node if node.op_type == "GlobalAveragePool").input[0])
