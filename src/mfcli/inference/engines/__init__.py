"""Engines: an artifact goes in, an object that computes logits comes out. One file each, loaded on use."""

import re
from typing import TYPE_CHECKING

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
        name: which; AUTO is torch for a GPU, OpenVINO for bf16, else ONNX Runtime.
        artifact: the model.
        options: device, precision and threads; None for the defaults.

    Raises:
        EngineError: the engine is not installed, cannot do what the options ask for, or refuses the model.
        ModelError: the engine needs the checkpoint and it is not there.
        UsageError: there is no such device or number of threads.
    """
    options = options or EngineOptions()
    return _class_of(choose_engine(name, options))(artifact, options)


def _class_of(name: EngineName) -> "Callable[[Artifact, EngineOptions], Engine]":
    """The class of an engine; importing it imports its package, and a broken one raises anything."""
    try:
        match name:
            case EngineName.OPENVINO:
                from mfcli.inference.engines.openvino import OpenVinoEngine

                return OpenVinoEngine
            case EngineName.TORCH:
                from mfcli.inference.engines.torch import TorchEngine

                return TorchEngine
            case _:
                from mfcli.inference.engines.onnxruntime import OnnxRuntimeEngine

                return OnnxRuntimeEngine
    except MfError:
        raise
    except Exception as error:
        raise package_error(name, error) from error


def choose_engine(name: EngineName, options: EngineOptions) -> EngineName:
    """Return the engine that a name and options stand for; imports none.

    Raises:
        EngineError: that engine has no such device or precision.
        UsageError: there is no such device or number of threads.
    """
    device, precision = options.device, options.precision
    if not _DEVICES.fullmatch(device):
        raise UsageError(f"unknown device {device!r}", "one of auto, cpu, cuda, cuda:0, cuda:1, ..., mps")
    if options.threads is not None and not 1 <= options.threads <= MAX_THREADS:
        raise UsageError(
            f"--threads {options.threads} is not between 1 and {MAX_THREADS}", f"--threads {usable_cores()}"
        )
    on_gpu = device not in ("auto", "cpu")
    if name is EngineName.AUTO:
        if on_gpu:
            name = EngineName.TORCH
        else:
            name = EngineName.ONNXRUNTIME if precision is Precision.FP32 else EngineName.OPENVINO
    if name is EngineName.TORCH:
        return name
    if on_gpu:
        raise EngineError(f"--engine {name} runs on the CPU alone", f"--engine torch --device {device}")
    if precision is Precision.FP16:
        raise EngineError("fp16 needs a GPU", "--precision bf16, or --device cuda")
    if name is EngineName.ONNXRUNTIME and precision is not Precision.FP32:
        raise EngineError(f"--engine onnxruntime has no {precision}", f"--engine openvino --precision {precision}")
    return name
