"""The metadata of an ONNX file is read as by the onnx package; other files are refused."""

import io

import onnx
import pytest
from onnx import TensorProto, helper

from mfcli.artifact.metadata import read_metadata


def serialize_model(**metadata: str) -> bytes:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    made = helper.make_model(helper.make_graph([], "g", [value], [value]))
    helper.set_model_props(made, metadata)
    return bytes(made.SerializeToString())


@pytest.mark.parametrize("metadata", [{}, {"a": "", "": "b"}, {"long": "x" * 300, "é": "ü", "k": "v"}])
def test_it_reads_what_onnx_writes(metadata: dict[str, str]) -> None:
    data = serialize_model(**metadata)
    expected = {p.key: p.value for p in onnx.load_from_string(data).metadata_props}
    assert dict(read_metadata(io.BytesIO(data), len(data))) == expected == metadata


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_truncated_file_is_refused(cut: int) -> None:
    data = serialize_model(key="value")[:-cut]
    with pytest.raises(ValueError, match="truncated"):
        list(read_metadata(io.BytesIO(data), len(data)))


def test_text_is_refused() -> None:
    with pytest.raises(ValueError, match="not an ONNX file"):
        list(read_metadata(io.BytesIO(b"hello, world"), 12))
