"""The graph: torch's logits with fewer nodes, and bit-identical logits of a picture in every batch."""

import dataclasses
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from deterministic import fill, pixels
from mfcli.artifact.graph import OPSET, write_graph
from mfcli.models.metaformer import MetaFormer, build_model
from mfcli.models.registry import ARCHITECTURES, Architecture, Family, find_variant

SIZE = {Family.RANDFORMER: 224}
"""Random mixing needs the token count of 224x224; the other families are tested on small pictures."""


def small_architecture(family: Family, depth: int = 1) -> Architecture:
    architecture = next(a for a in ARCHITECTURES.values() if a.family is family)
    return dataclasses.replace(architecture, depths=(depth,) * 4, dims=(8, 16, 32, 64))


def small_model(family: Family) -> tuple[MetaFormer, int]:
    model = build_model(small_architecture(family), num_classes=10).eval()
    fill(model)
    return model, SIZE.get(family, 64)


def export(model: MetaFormer, architecture: Architecture, size: int, half_weights: bool = False) -> onnx.ModelProto:
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    parts = write_graph(architecture, weights, (3, size, size), half_weights=half_weights)
    return onnx.load_from_string(b"".join(parts))


def session(proto: onnx.ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(loaded: onnxruntime.InferenceSession, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    (logits,) = loaded.run(["logits"], {"input": batch})
    return np.asarray(logits)


@pytest.mark.parametrize("family", Family)
def test_logits_equal_torch(family: Family) -> None:
    model, size = small_model(family)
    proto = export(model, small_architecture(family), size)
    onnx.checker.check_model(proto, full_check=True)
    batch = pixels(3, size)
    with torch.inference_mode():
        expected = model(batch).numpy()
    assert np.abs(run(session(proto), batch.numpy()) - expected).max() <= 2e-5 * expected.std()


@pytest.mark.parametrize("family", Family)
def test_scales_and_offsets_are_folded(family: Family) -> None:
    """Every scale, weight and bias is far from its initial value, so that a lost or doubled one is noticed."""
    model, size = small_model(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.linspace(0.5, 1.5, parameter.numel()) * (1 if "bias" not in name else -0.3))
    batch = pixels(2, size)
    with torch.inference_mode():
        expected = model(batch).numpy()
    logits = run(session(export(model, small_architecture(family), size)), batch.numpy())
    assert np.abs(logits - expected).max() <= 5e-5 * expected.std()


@pytest.mark.parametrize("family", Family)
def test_a_pictures_logits_do_not_depend_on_batch_or_threads(family: Family) -> None:
    model, size = small_model(family)
    proto = export(model, small_architecture(family), size)
    count = 7 if size == 224 else 32
    batch = pixels(count, size).numpy()
    together = run(session(proto), batch)
    for threads in (1, 2, 4):
        loaded = session(proto, threads)
        for batch_size in {1, 2, 3, 5, 7, 8, 16, 31, count} & set(range(count + 1)):
            assert np.array_equal(run(loaded, batch[-batch_size:]), together[-batch_size:]), (threads, batch_size)


@pytest.mark.slow
@pytest.mark.parametrize("family", [Family.CONVFORMER, Family.CAFORMER])
def test_logits_of_the_smallest_models_do_not_depend_on_the_batch(family: Family) -> None:
    bundled = find_variant("bundled").architecture
    architecture = dataclasses.replace(bundled, family=family)
    model = build_model(architecture, num_classes=200).eval()
    fill(model)
    loaded, batch = session(export(model, architecture, 64), 2), pixels(32, 64).numpy()
    together = run(loaded, batch)
    for batch_size in range(1, 32) if architecture == bundled else (1, 2, 3, 7, 31):
        assert np.array_equal(run(loaded, batch[:batch_size]), together[:batch_size]), batch_size


def count_nodes(family: Family, depth: int) -> Counter[str]:
    architecture = small_architecture(family, depth)
    model = build_model(architecture, num_classes=10)
    return Counter(node.op_type for node in export(model, architecture, 64).graph.node)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (Family.CAFORMER, {"MatMul": 16, "Conv": 10, "LayerNormalization": 8, "Softmax": 2, "BatchNormalization": 2}),
        (Family.CONVFORMER, {"Conv": 20, "LayerNormalization": 8, "BatchNormalization": 8}),
        (Family.IDENTITYFORMER, {"MatMul": 8, "InstanceNormalization": 8, "Transpose": 0}),
    ],
)
def test_the_nodes_of_one_more_block_per_stage(family: Family, expected: dict[str, int]) -> None:
    more = count_nodes(family, 2)
    more.subtract(count_nodes(family, 1))
    assert {kind: more[kind] for kind in expected} == expected
    assert not set(more) & {"Pow", "ReduceMean", "Identity", "Dropout", "Split", "Div", "Sqrt"}


def test_only_standard_operators() -> None:
    for family in Family:
        model, size = small_model(family)
        proto = export(model, small_architecture(family), size)
        assert [(o.domain, o.version) for o in proto.opset_import] == [("", OPSET)]
        assert {node.domain for node in proto.graph.node} == {""}


def test_half_weights_are_stored_exactly() -> None:
    model, size = small_model(Family.CAFORMER)
    model.half().float()
    proto = export(model, small_architecture(Family.CAFORMER), size, half_weights=True)
    stored = {t.name.removesuffix(".half"): onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    weight = model.state_dict()["stages.0.0.mlp.fc2.weight"].numpy()
    assert stored["stages.0.0.mlp.fc2.weight"].dtype == np.float16
    assert np.array_equal(stored["stages.0.0.mlp.fc2.weight"][:, :, 0, 0].astype(np.float32), weight)
    batch = pixels(2, size)
    with torch.inference_mode():
        expected = model(batch).numpy()
    assert np.abs(run(session(proto), batch.numpy()) - expected).max() <= 2e-5 * expected.std()
