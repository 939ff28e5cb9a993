"""OpenVINO on the CPU in float32 or bfloat16 (extra `openvino`): for many pictures, not for one.

The model is compiled for one picture, and each thread runs its own requests, so no picture's logits depend on another
picture. On two cores with caformer_s18 this was 1.2 (float32) and 1.4 times (bfloat16) as fast as requests of eight
pictures on both threads. Requests of two pictures were equally fast in float32 and slower in bfloat16; a dynamic batch
dimension was slower in both. bfloat16 was 1.8 to 2.3 times as fast as float32. Compiling takes one to two seconds, so
for a single photo ONNX Runtime is faster.

If its conversion tools are installed, openvino imports them, and they import a package that reports usage. Nothing here
needs them, so their import is blocked.
"""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfcli.artifact.file import Artifact, runtime_source
from mfcli.errors import EngineError, first_line
from mfcli.inference.engines.base import EngineName, EngineOptions, Precision, concatenate_outputs, cpu_batch_size
from mfcli.settings import usable_cores

_TOOLS = "openvino.tools.ovc"
INSTALL_HINT = "pip install openvino"


def _import_openvino() -> Any:
    """Import openvino without its conversion tools.

    Raises:
        EngineError: openvino is not installed or cannot be loaded.
    """
    block = _TOOLS not in sys.modules
    if block:
        sys.modules[_TOOLS] = None  # type: ignore[assignment]  # raises the ImportError that openvino handles
    try:
        import openvino
    except Exception as error:  # a broken installation can raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == "openvino":
            raise EngineError("OpenVINO is not installed", INSTALL_HINT) from error
        raise EngineError(f"OpenVINO cannot be loaded: {first_line(error)}", INSTALL_HINT) from error
    finally:
        if block:
            del sys.modules[_TOOLS]
    return openvino


@cache
def _open_core(openvino: Any) -> Any:
    """Return the only Core of the process.

    Each Core (of 2026.4) sets a signal stack and later restores the one before: Cores that end in another order than
    the reverse of their creation leave a freed one behind, and the next signal is a segmentation fault.
    """
    return openvino.Core()


class OpenVinoEngine:
    """An artifact compiled by OpenVINO."""

    name = EngineName.OPENVINO
    device = "cpu"
    streams = 2

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        self.precision = options.precision
        threads = options.threads or usable_cores()
        openvino = _import_openvino()
        try:
            core = _open_core(openvino)
            capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        except Exception as error:
            raise EngineError(f"OpenVINO cannot be used: {first_line(error)}", "engine=onnxruntime") from error
        if self.precision is Precision.BF16 and "BF16" not in capabilities:
            raise EngineError("this CPU does not support bfloat16", "precision=fp32")
        try:
            model = core.read_model(runtime_source(artifact.path, options.extra))
            model.reshape([1, 3, *artifact.plan.crop_size])
            compiled = core.compile_model(
                model,
                "CPU",
                {
                    "PERFORMANCE_HINT": "THROUGHPUT",
                    "NUM_STREAMS": str(threads),
                    "INFERENCE_NUM_THREADS": threads,
                    "INFERENCE_PRECISION_HINT": "bf16" if self.precision is Precision.BF16 else "f32",
                },
            )
            self._model = compiled
            # the first access initialises the NumPy bindings, and two threads that do so at once deadlock
            _ = compiled.create_infer_request().get_input_tensor(0).data
        except Exception as error:  # the runtime can raise anything
            raise EngineError(
                f"OpenVINO cannot load {artifact.path}: {first_line(error)}", "engine=onnxruntime"
            ) from error
        self._thread_state = threading.local()
        self._outputs = ["logits", *options.extra]
        self._pool = ThreadPoolExecutor(threads, "openvino")
        self.batch_size = cpu_batch_size(artifact.plan.crop_size, threads)

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (N, 3, H, W) to float32 (N, classes)."""
        return self.compute(batch)[0]

    def compute(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Map float32 (N, 3, H, W) to the logits and what else was asked for."""
        try:
            return concatenate_outputs(self._pool.map(self._run, np.split(batch, len(batch))))
        except RuntimeError as error:  # the pool starts its threads here
            raise EngineError(f"OpenVINO failed: {first_line(error)}", "threads=1 workers=1") from error

    def _run(self, picture: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        try:
            if not hasattr(self._thread_state, "request"):
                self._thread_state.request = self._model.create_infer_request()
            request = self._thread_state.request
            request.infer({0: picture})
            return tuple(np.array(request.get_tensor(name).data, np.float32) for name in self._outputs)
        except Exception as error:
            raise EngineError(f"OpenVINO failed: {first_line(error)}", "engine=onnxruntime") from error
