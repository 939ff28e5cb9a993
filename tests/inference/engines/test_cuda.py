"""What only a machine with an NVIDIA GPU can show: the answers there are those of the CPU."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

import mfcli
from conftest import Ran
from deterministic import picture, pixels
from mfcli.artifact.ensure import ensure_artifact
from mfcli.artifact.file import Artifact
from mfcli.inference.engines import load_engine
from mfcli.inference.engines.base import EngineName, EngineOptions, Precision
from mfcli.models.checkpoint import write_random
from mfcli.models.registry import find_variant
from mfcli.results import Output
from mfcli.settings import Settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

FP32, BF16, FP16 = Precision
MODELS = ("bundled", "caformer_s18", "convformer_s18", "poolformer_s12")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("models")
    settings = Settings(model="bundled", named_cache_dir=folder, debug=False)
    found = {}
    for name in MODELS:
        weights = None if name == "bundled" else folder / f"{name}.safetensors"
        if weights:
            write_random(weights, find_variant(name))
        found[name] = ensure_artifact(find_variant(name), weights, settings)
    return found


def compute(artifact: Artifact, count: int, device: str, precision: Precision = FP32) -> NDArray[np.float32]:
    engine = load_engine(EngineName.TORCH, artifact, EngineOptions(device, precision))
    return engine.logits(pixels(count, artifact.plan.crop_size[0]).numpy())


def have_equal_top5(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Whether the five largest are the same classes, but for ties."""
    ours, theirs = (np.argsort(-logits, axis=1, kind="stable")[:, :5] for logits in (found, expected))
    values = (np.take_along_axis(expected, order, 1) for order in (ours, theirs))
    return bool(np.abs(np.subtract(*values)).max() <= 2e-3 * expected.std())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("precision", "share"), [(FP32, 1e-3), (FP16, 0.03), (BF16, 0.3)])
def test_the_answers_are_those_of_the_cpu(
    model: str, precision: Precision, share: float, artifacts: dict[str, Artifact]
) -> None:
    expected = compute(artifacts[model], 8, "cpu")
    found = compute(artifacts[model], 8, "cuda", precision)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= share * expected.std()
    assert precision is not FP32 or have_equal_top5(found, expected)


@pytest.mark.parametrize("count", [1, 3, 64, 257])
def test_every_batch_size_gives_the_same_answers(count: int, artifacts: dict[str, Artifact]) -> None:
    expected = compute(artifacts["bundled"], count, "cpu")
    assert np.abs(compute(artifacts["bundled"], count, "cuda") - expected).max() <= 1e-3 * expected.std()


def test_fp32_is_not_tf32(artifacts: dict[str, Artifact]) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    load_engine(EngineName.TORCH, artifacts["bundled"], EngineOptions("cuda"))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_streams_do_not_disturb_one_another(artifacts: dict[str, Artifact]) -> None:
    engine = load_engine(EngineName.TORCH, artifacts["caformer_s18"], EngineOptions("cuda"))
    batches = list(pixels(96, 224).numpy().reshape(12, 8, 3, 224, 224))
    expected = [engine.logits(batch) for batch in batches]
    with ThreadPoolExecutor(engine.streams + 2) as pool:
        for found, alone in zip(pool.map(engine.logits, batches * 3), expected * 3, strict=True):
            assert np.abs(found - alone).max() <= 1e-4 * alone.std()


def test_features_and_map_come_from_the_same_pass(artifacts: dict[str, Artifact]) -> None:
    batch, extra = pixels(5, 64).numpy(), (Output.FEATURES, Output.MAP)
    on_cpu, on_gpu = (
        load_engine(EngineName.TORCH, artifacts["bundled"], EngineOptions(device, extra=extra)).compute(batch)
        for device in ("cpu", "cuda")
    )
    for found, expected in zip(on_gpu, on_cpu, strict=True):
        assert np.abs(found - expected).max() <= 1e-3 * expected.std()


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_answers() -> None:
    model = mfcli.create_model("bundled").cuda().to(memory_format=torch.channels_last)
    batch = pixels(8, 64).cuda().contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = model(batch)
        assert (torch.compile(model)(batch) - expected).abs().max() <= 1e-3 * expected.std()


@pytest.mark.parametrize("model", ["bundled", "caformer_s18"])
def test_onnxruntime_on_cuda_gives_the_same_answers(model: str, artifacts: dict[str, Artifact]) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime is built without CUDA")
    providers = [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(artifacts[model].path, providers=providers)
    assert session.get_providers()[0] == "CUDAExecutionProvider"
    expected = compute(artifacts[model], 8, "cpu")
    (found,) = session.run(["logits"], {"input": pixels(8, artifacts[model].plan.crop_size[0]).numpy()})
    assert np.abs(found - expected).max() <= 1e-3 * expected.std()
    assert have_equal_top5(found, expected)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """About 200 MiB more than what is in use."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 200 * 2**20) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("little_memory")
def test_no_row_is_lost_where_memory_runs_out(mf: Callable[..., Ran], tmp_path: Path) -> None:
    names = [str(tmp_path / f"{number:04}.png") for number in range(600)]
    for name in names:
        picture(48, 48, name=name).save(name)
    options = ("predict", *names, "--format", "csv", "-k", "1", "--batch-size", "512")
    expected, ran = mf(*options), mf(*options, "--device", "cuda")
    assert ran.code == 0
    answers = [[line.split(",")[:7] for line in one.out.splitlines()] for one in (ran, expected)]
    assert answers[0] == answers[1]
    assert ran.err.count("cuda:0 ran out of memory, so batches were halved to") == 1
