"""OpenVINO: the logits of the other engines in float32, close ones in bfloat16; skipped if it is not installed."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deterministic import pixels
from mfcli.artifact.ensure import ensure_artifact
from mfcli.artifact.file import Artifact
from mfcli.errors import EngineError
from mfcli.inference.engines import load_engine
from mfcli.inference.engines.base import EngineName, EngineOptions, Precision
from mfcli.models.registry import find_variant
from mfcli.settings import Settings

openvino = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def bundled() -> Artifact:
    return ensure_artifact(find_variant("bundled"), None, Settings.from_environ())


def test_float32_equals_torch(bundled: Artifact) -> None:
    batch = pixels(5, 64).numpy()
    engine = load_engine(EngineName.OPENVINO, bundled, EngineOptions(threads=2))
    assert (engine.name, engine.precision, engine.device) == ("openvino", "fp32", "cpu")
    expected = load_engine(EngineName.TORCH, bundled, EngineOptions("cpu")).logits(batch)
    logits = engine.logits(batch)
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() <= 1e-4 * expected.std()
    for index in range(5):
        assert np.array_equal(engine.logits(batch[index : index + 1])[0], logits[index])


def test_bfloat16_is_close_or_unsupported(bundled: Artifact) -> None:
    options = EngineOptions(precision=Precision.BF16, threads=2)
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(EngineError, match="does not support bfloat16") as caught:
            load_engine(EngineName.AUTO, bundled, options)
        assert caught.value.hint == "precision=fp32"
        return
    batch = pixels(4, 64).numpy()
    engine = load_engine(EngineName.AUTO, bundled, options)
    assert (engine.name, engine.precision) == ("openvino", "bf16")
    expected = load_engine(EngineName.ONNXRUNTIME, bundled).logits(batch)
    difference = np.abs(engine.logits(batch) - expected).max()
    assert 1e-4 * expected.std() < difference < 0.3 * expected.std()


def test_a_damaged_file(bundled: Artifact, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(bundled.path.read_bytes()[:5000])
    with pytest.raises(EngineError, match="OpenVINO cannot load") as caught:
        load_engine(EngineName.OPENVINO, dataclasses.replace(bundled, path=tmp_path / "x.onnx"))
    assert caught.value.hint == "engine=onnxruntime"


def test_a_wrong_input_shape(bundled: Artifact) -> None:
    engine = load_engine(EngineName.OPENVINO, bundled, EngineOptions(threads=1))
    with pytest.raises(EngineError, match="OpenVINO failed"):
        engine.logits(np.zeros((2, 3, 32, 32), np.float32))
    assert engine.logits(np.zeros((2, 3, 64, 64), np.float32)).shape == (2, 200)


SIGNAL_AFTER_TWO_ENGINES = """
import os, signal
from mfcli.artifact.ensure import ensure_artifact
from mfcli.inference.engines import load_engine
from mfcli.inference.engines.base import EngineName, EngineOptions
from mfcli.models.registry import find_variant
from mfcli.settings import Settings
artifact = ensure_artifact(find_variant("bundled"), None, Settings.from_environ())
engines = [load_engine(EngineName.OPENVINO, artifact, EngineOptions(threads=1)) for _ in range(2)]
while engines:
    engines.pop(0)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
def test_engines_that_are_gone_leave_signals_alone() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNAL_AFTER_TWO_ENGINES], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n")
