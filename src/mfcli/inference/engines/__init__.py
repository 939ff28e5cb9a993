"""Engines run an artifact: each maps a batch of pictures to logits with one runtime.

One module per engine, imported only when that engine is chosen. A new engine is a module here, a member of `EngineName`
and a case in `_import_engine`.
"""

import re
from typing import TYPE_CHECKING, assert_never

from mfcli.errors import EngineError, MfError, UsageError, package_error
from mfcli.inference.engines.base import MAX_THREADS, Engine, EngineName, EngineOptions, Precision
from mfcli.settings import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable

    from mfcli.artifact.file import Artifact

_DEVICES = re.compile(r"auto|cpu|cuda(:\d{1,4})?|mps")


def load_engine(name: EngineName, artifact: "Artifact", options: EngineOptions | None = None) -> Engine:
    """Load a model into an engine.

    Args:
        name: the engine; AUTO is torch for a GPU, OpenVINO for bf16, else ONNX Runtime.
        artifact: the model.
        options: device, precision and threads; None for the defaults.

    Raises:
        EngineError: the engine is not installed, does not support the options, or cannot load the model.
        ModelError: the engine needs the checkpoint, which is not on this machine.
        UsageError: the device is unknown, or the number of threads out of range.
    """
    options = options or EngineOptions()
    return _import_engine(choose_engine(name, options))(artifact, options)


def _import_engine(name: EngineName) -> "Callable[[Artifact, EngineOptions], Engine]":
    """Import an engine's module and return its class; a broken installation can raise anything."""
    try:
        match name:
            case EngineName.OPENVINO:
                from mfcli.inference.engines.openvino import OpenVinoEngine

                return OpenVinoEngine
            case EngineName.TORCH:
                from mfcli.models.checkpoint import require_packages

                require_packages("torch", "timm")
                from mfcli.inference.engines.torch import TorchEngine

                return TorchEngine
            case EngineName.ONNXRUNTIME:
                from mfcli.inference.engines.onnxruntime import OnnxRuntimeEngine

                return OnnxRuntimeEngine
            case EngineName.AUTO:
                raise ValueError("choose_engine resolves it")
            case _:
                assert_never(name)
    except MfError:
        raise
    except Exception as error:
        raise package_error(name, error) from error


def choose_engine(name: EngineName, options: EngineOptions) -> EngineName:
    """Resolve AUTO and check the options, without importing an engine.

    Raises:
        EngineError: the engine does not support the device or the precision.
        UsageError: the device is unknown, or the number of threads out of range.
    """
    device, precision = options.device, options.precision
    if not _DEVICES.fullmatch(device):
        raise UsageError(f"unknown device {device!r}", "one of auto, cpu, cuda, cuda:0, cuda:1, ..., mps")
    if options.threads is not None and not 1 <= options.threads <= MAX_THREADS:
        raise UsageError(f"threads={options.threads} is not between 1 and {MAX_THREADS}", f"threads={usable_cores()}")
    on_gpu = device not in ("auto", "cpu")
    if name is EngineName.AUTO:
        if on_gpu:
            name = EngineName.TORCH
        else:
            name = EngineName.ONNXRUNTIME if precision is Precision.FP32 else EngineName.OPENVINO
    if name is EngineName.TORCH:
        return name
    if on_gpu:
        raise EngineError(f"{name} runs only on the CPU", f"engine=torch device={device}")
    if precision is Precision.FP16:
        raise EngineError("fp16 needs a GPU", "precision=bf16, or device=cuda")
    if name is EngineName.ONNXRUNTIME and precision is not Precision.FP32:
        raise EngineError(f"onnxruntime does not support {precision}", f"engine=openvino precision={precision}")
    return name
