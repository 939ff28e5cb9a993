"""Choosing and loading an engine: which one a combination of options gives, and what the errors suggest."""

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from conftest import Ran, only_threads
from deterministic import pixels
from mfcli.artifact.ensure import ensure_artifact
from mfcli.artifact.file import Artifact
from mfcli.errors import EngineError, ExitCode, UsageError
from mfcli.hub.bundled import bundled_file
from mfcli.inference.engines import choose_engine, load_engine
from mfcli.inference.engines.base import EngineName, EngineOptions, Precision, cpu_batch_size, pictures_per_run
from mfcli.models.registry import find_variant
from mfcli.results import Output
from mfcli.settings import Settings

AUTO, ONNXRUNTIME, OPENVINO, TORCH = EngineName
FP32, BF16, FP16 = Precision


@pytest.fixture
def bundled() -> Artifact:
    return ensure_artifact(find_variant("bundled"), None, Settings.from_environ())


@pytest.mark.parametrize(
    ("name", "device", "precision", "chosen"),
    [
        (AUTO, "auto", FP32, ONNXRUNTIME),
        (AUTO, "cpu", FP32, ONNXRUNTIME),
        (AUTO, "auto", BF16, OPENVINO),
        (AUTO, "cuda", FP32, TORCH),
        (AUTO, "cuda:1", BF16, TORCH),
        (AUTO, "mps", FP16, TORCH),
        (ONNXRUNTIME, "cpu", FP32, ONNXRUNTIME),
        (OPENVINO, "auto", BF16, OPENVINO),
        (OPENVINO, "cpu", FP32, OPENVINO),
        (TORCH, "auto", FP16, TORCH),
    ],
)
def test_engine_for_device_and_precision(
    name: EngineName, device: str, precision: Precision, chosen: EngineName
) -> None:
    assert choose_engine(name, EngineOptions(device, precision)) is chosen


@pytest.mark.parametrize(
    ("name", "device", "precision", "message", "hint"),
    [
        (ONNXRUNTIME, "auto", BF16, "onnxruntime does not support bf16", "engine=openvino precision=bf16"),
        (ONNXRUNTIME, "cuda", FP32, "onnxruntime runs only on the CPU", "engine=torch device=cuda"),
        (OPENVINO, "cuda:0", FP32, "openvino runs only on the CPU", "engine=torch device=cuda:0"),
        (OPENVINO, "cpu", FP16, "fp16 needs a GPU", "precision=bf16, or device=cuda"),
        (AUTO, "auto", FP16, "fp16 needs a GPU", "precision=bf16, or device=cuda"),
    ],
)
def test_unsupported_combinations(name: EngineName, device: str, precision: Precision, message: str, hint: str) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        choose_engine(name, EngineOptions(device, precision))
    assert caught.value.hint == hint
    assert caught.value.exit_code is ExitCode.ENGINE


@pytest.mark.parametrize("device", ["gpu", "", "cuda:", "cuda:x", "CPU", "cuda:-1", "mps:0"])
def test_unknown_device(device: str) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        choose_engine(AUTO, EngineOptions(device))


def test_threads_out_of_range() -> None:
    with pytest.raises(UsageError, match="threads=0 is not between 1 and 1024"):
        choose_engine(AUTO, EngineOptions(threads=0))


def test_the_default_engine(bundled: Artifact) -> None:
    engine = load_engine(AUTO, bundled)
    assert (engine.name, engine.precision, engine.device) == (ONNXRUNTIME, FP32, "cpu")


@pytest.mark.parametrize(("threads", "size", "batch"), [(1, 224, 8), (2, 224, 16), (16, 224, 128), (2, 384, 8)])
def test_batch_size_by_threads_and_input_size(threads: int, size: int, batch: int) -> None:
    assert cpu_batch_size((size, size), threads) == batch


def test_pictures_per_run_by_input_size() -> None:
    assert (pictures_per_run((224, 224)), pictures_per_run((64, 64)), pictures_per_run((600, 600))) == (2, 24, 1)


@pytest.mark.slow
def test_onnxruntime_gives_a_picture_the_same_bits_in_every_batch(bundled: Artifact) -> None:
    batch = pixels(53, 64).numpy()
    loaded = {threads: load_engine(ONNXRUNTIME, bundled, EngineOptions(threads=threads)) for threads in (1, 2, 3)}
    together = loaded[1].logits(batch)
    for engine in loaded.values():
        for count in (1, 2, 3, 24, 25, 32, 53):
            assert np.array_equal(engine.logits(batch[:count]), together[:count])


def test_a_wrong_input_shape_is_an_engine_error(bundled: Artifact) -> None:
    with pytest.raises(EngineError, match="ONNX Runtime failed"):
        load_engine(ONNXRUNTIME, bundled, EngineOptions(threads=2)).logits(np.zeros((50, 3, 32, 32), np.float32))


def test_openvino_is_not_installed(bundled: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match="OpenVINO is not installed") as caught:
        load_engine(AUTO, bundled, EngineOptions(precision=BF16))
    assert caught.value.hint == "pip install openvino"


CONNECTIONS = """
import sys
connections = []
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"):
        connections.append((event, arguments))
sys.addaudithook(hook)
import numpy
from mfcli.artifact.ensure import ensure_artifact
from mfcli.inference.engines import load_engine
from mfcli.inference.engines.base import EngineName, EngineOptions
from mfcli.results import Output
from mfcli.settings import Settings
from mfcli.models.registry import find_variant
artifact = ensure_artifact(find_variant("bundled"), None, Settings.from_environ())
engine = load_engine(EngineName(sys.argv[1]), artifact, EngineOptions("cpu"))
assert engine.logits(numpy.zeros((3, 3, 64, 64), numpy.float32)).shape == (3, 200)
assert not connections, connections
others = {"onnxruntime": ("torch", "timm", "openvino"), "openvino": ("torch", "timm", "onnxruntime"), "torch": ()}
print(*[name for name in sys.modules if "telemetry" in name or name.startswith("openvino.tools.")])
print(*[name for name in others[sys.argv[1]] if name in sys.modules])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
def test_engines_open_no_connection(name: str) -> None:
    if name == "openvino":
        pytest.importorskip("openvino")
    done = subprocess.run([sys.executable, "-c", CONNECTIONS, name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "code", "message"),
    [
        (
            "onnxruntime",
            "raise ImportError('libcudart.so.12: no such file')",
            "onnxruntime cannot be loaded: libcudart",
        ),
        ("torch", "import ctypes; ctypes.CDLL('libnope.so.1')", "torch cannot be loaded: libnope.so.1: cannot open"),
        ("torch", "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')", "torch is not installed"),
        ("openvino", "raise RuntimeError('no plugin')", "OpenVINO cannot be loaded: no plugin"),
    ],
)
def test_a_broken_package(
    package: str, code: str, message: str, mf_process: Callable[..., Ran], coffee: Path, tmp_path: Path
) -> None:
    (tmp_path / f"{package}.py").write_text(code)
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    ran = mf_process("predict", str(coffee), "-q", "--engine", package, PYTHONPATH=path)
    assert (ran.code, ran.out) == (7, "")
    assert ran.err.startswith(f"error: {message}")
    assert "hint: " in ran.err


def test_a_comparison_needs_torch(
    mf_process: Callable[..., Ran], coffee: Path, small_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("import ctypes; ctypes.CDLL('libnope.so.1')")
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    ran = mf_process("predict", str(coffee), "-q", "--weights", str(small_weights), PYTHONPATH=path, MF_CHECK="1")
    assert (ran.code, ran.err.partition(":")[0]) == (7, "error")
    assert "torch cannot be loaded: libnope.so.1" in ran.err


def test_onnxruntime_opens_a_path_that_is_not_utf8(bundled: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9.onnx"
    path.write_bytes(bundled.path.read_bytes())
    batch = pixels(1, 64).numpy()
    copy = load_engine(ONNXRUNTIME, dataclasses.replace(bundled, path=path))
    assert (copy.logits(batch) == load_engine(ONNXRUNTIME, bundled).logits(batch)).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_onnxruntime_keeps_to_its_threads(threads: int, bundled: Artifact) -> None:
    engine = load_engine(ONNXRUNTIME, bundled, EngineOptions(threads=threads))
    running, most, lock = 0, 0, threading.Lock()

    class Session:
        def run(self, _: object, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.02)
            with lock:
                running -= 1
            return [np.zeros((len(inputs["input"]), 200), np.float32)]

    engine._session = Session()  # type: ignore[attr-defined]
    calls = [threading.Thread(target=engine.logits, args=(pixels(size, 64),)) for size in (1, 1, 1, 60)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert most == threads


def test_a_limit_on_threads(bundled: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    started = only_threads(3, monkeypatch)
    with pytest.raises(EngineError, match="cannot start 7 threads") as caught:
        load_engine(ONNXRUNTIME, bundled, EngineOptions(threads=8))
    assert str(caught.value.hint).startswith("threads=1 workers=1, or raise the limits")
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "safetensors", "timm"])
def test_preparing_weights_with_a_broken_package(
    package: str, mf_process: Callable[..., Ran], coffee: Path, tmp_path: Path
) -> None:
    (tmp_path / f"{package}.py").write_text("raise ImportError('libnope.so.1: no such file')")
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    weights = bundled_file("convformer_t8_64.safetensors")
    environment = {"PYTHONPATH": path, "MF_CHECK": "1"}
    ran = mf_process("predict", str(coffee), "-q", "--weights", str(weights), **environment)
    assert (ran.code, ran.err.splitlines()[0]) == (7, f"error: {package} cannot be loaded: libnope.so.1: no such file")


def test_a_limit_on_threads_met_while_computing(bundled: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine(ONNXRUNTIME, bundled, EngineOptions(threads=2))

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert engine.logits(pixels(1, 64).numpy()).shape == (1, 200)
    with pytest.raises(EngineError, match="can't start new thread") as caught:
        engine.logits(pixels(60, 64).numpy())
    assert str(caught.value.hint).startswith("threads=1 workers=1, or raise the limits")
    assert load_engine(ONNXRUNTIME, bundled, EngineOptions(threads=1)).logits(pixels(60, 64).numpy()).shape == (60, 200)


@pytest.mark.parametrize("name", [ONNXRUNTIME, pytest.param(OPENVINO, marks=pytest.mark.slow), TORCH])
def test_features_and_map_beside_the_same_logits(name: EngineName, bundled: Artifact) -> None:
    if name is OPENVINO:
        pytest.importorskip("openvino")
    batch = pixels(30, 64).numpy()
    logits = load_engine(name, bundled).logits(batch)
    engine = load_engine(name, bundled, EngineOptions(extra=(Output.FEATURES, Output.MAP)))
    computed, features, last_map = engine.compute(batch)
    assert np.array_equal(computed, logits)
    assert (features.shape, features.dtype.name, last_map.shape) == ((30, 320), "float32", (30, 320, 4, 4))
    weights = load_file(bundled_file("convformer_t8_64.safetensors"))
    assert np.allclose(features @ weights["head.weight"].T + weights["head.bias"], logits, atol=1e-3)
    pooled = last_map.mean((2, 3))
    normed = (pooled - pooled.mean(1, keepdims=True)) / np.sqrt(pooled.var(1, keepdims=True) + 1e-6)
    assert np.allclose(normed * weights["norm.weight"] + weights["norm.bias"], features, atol=1e-3)
