"""The torch engine: missing devices, half precision, out of memory."""

import dataclasses

import numpy as np
import pytest
import timm  # noqa: F401  # it cannot be imported while torch is patched
import torch

from deterministic import pixels
from mfcli.artifact.ensure import ensure_artifact
from mfcli.artifact.file import Artifact
from mfcli.errors import BatchTooLargeError, EngineError, ExitCode, ModelError
from mfcli.inference.engines import load_engine
from mfcli.inference.engines.base import EngineName, EngineOptions, Precision
from mfcli.models.registry import find_variant
from mfcli.settings import Settings


@pytest.fixture(scope="module")
def bundled() -> Artifact:
    return ensure_artifact(find_variant("bundled"), None, Settings.from_environ())


@pytest.mark.parametrize(
    ("device", "message"), [("cuda", "no CUDA device"), ("cuda:1", "no CUDA device"), ("mps", "no MPS device")]
)
def test_a_missing_device(device: str, message: str, bundled: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(EngineError, match=message) as caught:
        load_engine(EngineName.AUTO, bundled, EngineOptions(device))
    assert (caught.value.hint, caught.value.exit_code) == ("device=cpu", ExitCode.ENGINE)


def test_a_cuda_index_out_of_range(bundled: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EngineError, match="there is no cuda:2: 2 CUDA devices") as caught:
        load_engine(EngineName.TORCH, bundled, EngineOptions("cuda:2"))
    assert caught.value.hint == "device=cuda:0"


def test_bfloat16_on_the_cpu(bundled: Artifact) -> None:
    batch = pixels(4, 64).numpy()
    exact = load_engine(EngineName.TORCH, bundled, EngineOptions("cpu", threads=2))
    half = load_engine(EngineName.TORCH, bundled, EngineOptions("cpu", Precision.BF16, 2))
    assert (half.name, half.precision, half.device) == ("torch", "bf16", "cpu")
    logits, expected = half.logits(batch), exact.logits(batch)
    assert logits.dtype == np.float32
    assert 1e-4 * expected.std() < np.abs(logits - expected).max() < 0.3 * expected.std()


def test_fp16_needs_a_gpu(bundled: Artifact) -> None:
    with pytest.raises(EngineError, match="fp16 needs a GPU"):
        load_engine(EngineName.TORCH, bundled, EngineOptions("cpu", Precision.FP16))


@pytest.mark.parametrize(
    ("pictures", "message", "hint"), [(9, "9 pictures at once", "batch_size=4"), (1, "1 picture", "device=cpu")]
)
def test_out_of_memory(
    pictures: int, message: str, hint: str, bundled: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load_engine(EngineName.TORCH, bundled, EngineOptions("cpu"))

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(engine, "_model", full)
    with pytest.raises(BatchTooLargeError, match=rf"(?m)cpu has too little memory for {message}$") as caught:
        engine.logits(pixels(pictures, 64).numpy())
    assert caught.value.hint == hint


def test_an_unusable_device(bundled: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(*_: object) -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease install one")

    monkeypatch.setattr(torch.nn.Module, "to", no_driver)
    with pytest.raises(
        EngineError, match=r"(?m)cpu cannot be used: Found no NVIDIA driver on your system\.$"
    ) as caught:
        load_engine(EngineName.TORCH, bundled, EngineOptions("cpu"))
    assert caught.value.hint == "device=cpu"


def test_a_checkpoint_replaced_since_it_was_verified(bundled: Artifact) -> None:
    with pytest.raises(ModelError, match="changed while it was read"):
        load_engine(EngineName.TORCH, dataclasses.replace(bundled, weights_sha256="0" * 64), EngineOptions("cpu"))
