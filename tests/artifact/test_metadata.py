"""The metadata of an ONNX file is read as onnx reads it; what is no ONNX file is refused."""

import io

import onnx
import pytest
from onnx import TensorProto, helper

from mfcli.artifact.metadata import metadata_props


def model(**metadata: str) -> bytes:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    made = helper.make_model(helper.make_graph([], "g", [value], [value]))
    helper.set_model_props(made, metadata)
    return bytes(made.SerializeToString())


@pytest.mark.parametrize("metadata", [{}, {"a": "", "": "b"}, {"long": "x" * 300, "é": "ü", "k": "v"}])
def test_it_reads_what_onnx_wrote(metadata: dict[str, str]) -> None:
    data = model(**metadata)
    expected = {p.key: p.value for p in onnx.load_from_string(data).metadata_props}
    assert dict(metadata_props(io.BytesIO(data), len(data))) == expected == metadata


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_cut_file_is_refused(cut: int) -> None:
    data = model(key="value")[:-cut]
    with pytest.raises(ValueError, match="cut off"):
        list(metadata_props(io.BytesIO(data), len(data)))


def test_text_is_refused() -> None:
    with pytest.raises(ValueError, match="not an ONNX file"):
        list(metadata_props(io.BytesIO(b"hello, world"), 12))
