"""ONNX Runtime on the CPU in float32: the portable default, starts without torch."""

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mfcli.artifact import Artifact
from mfcli.engines.base import EngineName, EngineOptions, Precision
from mfcli.errors import EngineError
from mfcli.settings import usable_cores

_FATAL_ONLY = 4


class OnnxRuntimeEngine:
    """An artifact in an ONNX Runtime session."""

    name = EngineName.ONNXRUNTIME
    precision = Precision.FP32
    device = "cpu"
    batch_size = 8

    def __init__(self, artifact: Artifact, settings: EngineOptions) -> None:
        cores = settings.threads or usable_cores()
        self.streams = settings.streams or min(cores, 8)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = max(1, cores // self.streams)
        try:
            self._session = onnxruntime.InferenceSession(artifact.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise EngineError(
                f"ONNX Runtime cannot load {artifact.path}: {_first_line(error)}",
                f"if the file is damaged, delete it and run again: rm {artifact.path}",
            ) from error

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (N, 3, H, W) to float32 (N, classes)."""
        try:
            (logits,) = self._session.run(["logits"], {"input": batch})
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed: {_first_line(error)}") from error
        return np.asarray(logits, np.float32)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
