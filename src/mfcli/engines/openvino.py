"""OpenVINO on the CPU in float32 or bfloat16 (extra `openvino`): for many pictures, not for one.

Every picture is a request of its own, in as many streams as there are threads, compiled for exactly that shape, so that
no picture can depend on another. Measured on two cores with caformer_s18 this was 1.2 times (float32) and 1.4 times
(bfloat16) as fast as one request of eight pictures on both threads; requests of two pictures were as fast within the
noise in float32 and slower in bfloat16, and a batch left free was slower in both. bfloat16 was 1.8 to 2.3 times as fast
as float32. Compiling takes one to two seconds, so that a single photo is answered sooner by ONNX Runtime.

openvino imports its conversion tools where it finds them, and these import a package that reports usage. Nothing here
needs them, so they are kept out.
"""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfcli.artifact import Artifact
from mfcli.engines.base import EngineName, EngineOptions, Precision, cpu_batch_size, first_line
from mfcli.errors import EngineError
from mfcli.settings import usable_cores

_TOOLS = "openvino.tools.ovc"
INSTALL_HINT = "pip install 'mfcli[openvino]'"


def _import_openvino() -> Any:
    """Import openvino without its tools.

    Raises:
        EngineError: it is not installed, or cannot be loaded.
    """
    unknown = _TOOLS not in sys.modules
    if unknown:
        sys.modules[_TOOLS] = None  # type: ignore[assignment]  # makes importing it an ImportError, which openvino expects
    try:
        import openvino
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "openvino":
            raise EngineError("OpenVINO is not installed", INSTALL_HINT) from error
        raise EngineError(f"OpenVINO cannot be loaded: {first_line(error)}", INSTALL_HINT) from error
    finally:
        if unknown:
            del sys.modules[_TOOLS]
    return openvino


class OpenVinoEngine:
    """An artifact compiled by OpenVINO."""

    name = EngineName.OPENVINO
    device = "cpu"

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        self.precision = options.precision
        threads = options.threads or usable_cores()
        openvino = _import_openvino()
        core = openvino.Core()
        if self.precision is Precision.BF16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise EngineError("this processor has no bfloat16 arithmetic", "--precision fp32")
        try:
            model = core.read_model(artifact.path)
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
            self._queue = openvino.AsyncInferQueue(compiled, threads)
        except Exception as error:  # whatever the runtime raises
            raise EngineError(
                f"OpenVINO cannot load {artifact.path}: {first_line(error)}", "--engine onnxruntime"
            ) from error
        self._queue.set_callback(_keep)
        self._shape = (3, *artifact.plan.crop_size)
        self.batch_size = cpu_batch_size(artifact.plan.crop_size, threads)

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (N, 3, H, W) to float32 (N, classes)."""
        if batch.shape[1:] != self._shape:  # the queue would lose the request that it refuses, and wait for it forever
            raise EngineError(f"OpenVINO failed: pictures of {batch.shape[1:]} where {self._shape} are expected")
        rows: list[NDArray[np.float32] | None] = [None] * len(batch)
        try:
            for index in range(len(batch)):
                self._queue.start_async({0: batch[index : index + 1]}, (rows, index))
            self._queue.wait_all()
        except Exception as error:
            raise EngineError(f"OpenVINO failed: {first_line(error)}", "--engine onnxruntime") from error
        return np.stack([row for row in rows if row is not None])


def _keep(request: Any, place: tuple[list[NDArray[np.float32] | None], int]) -> None:
    rows, index = place
    rows[index] = np.array(request.get_output_tensor(0).data[0], np.float32)
