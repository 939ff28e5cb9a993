"""More outputs of an artifact: every kind of head, and files without one."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from mfcli.artifact.graph import write_graph
from mfcli.artifact.outputs import read_with_outputs
from mfcli.errors import ModelError
from mfcli.models.checkpoint import write_random
from mfcli.models.registry import find_variant
from mfcli.results import Output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["caformer_s18", "poolformerv2_s12", "identityformer_s12"])
def test_features_are_what_the_head_gets(name: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    variant = find_variant(name)
    write_random(tmp_path / "w.safetensors", variant)
    weights = load_file(tmp_path / "w.safetensors")
    path = tmp_path / "model.onnx"
    path.write_bytes(b"".join(write_graph(variant.architecture, weights, variant.input_size)))
    session = onnxruntime.InferenceSession(read_with_outputs(path, (Output.FEATURES, Output.MAP)))
    pixels = np.random.default_rng(0).standard_normal((2, *variant.input_size), np.float32)
    logits, features, last_map = session.run(None, {"input": pixels})
    assert np.array_equal(logits, onnxruntime.InferenceSession(path).run(None, {"input": pixels})[0])
    assert (features.shape, last_map.shape) == ((2, 512), (2, 512, 7, 7))
    if "head.weight" in weights:
        assert np.allclose(features @ weights["head.weight"].T + weights["head.bias"], logits, atol=1e-4)


@pytest.mark.parametrize("content", [b"no model", None, "another graph"])
def test_a_file_that_is_no_artifact(content: bytes | str | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        onnx.save(helper.make_model(helper.make_graph([], content, [], [])), path)
    with pytest.raises(ModelError, match=r"is damaged|cannot read"):
        read_with_outputs(path, (Output.FEATURES,))
