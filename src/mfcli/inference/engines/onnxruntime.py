"""ONNX Runtime on the CPU in float32: the portable default, which needs no torch.

A batch is split into parts of a few pictures, and each thread runs whole parts: activations then stay in the CPU's
caches, and threads synchronise once a batch instead of once a layer. A single part, such as one photo, is computed by
all threads together. A picture's logits are bit for bit the same in either case, because no operator of the graph sums
in an order that depends on the batch or on the number of threads (graph.py; tested). Idle threads do not spin, which
would take cores from the busy ones and from decoding.
"""

import threading
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mfcli.artifact.file import Artifact, runtime_source
from mfcli.errors import (
    BatchTooLargeError,
    EngineError,
    first_line,
    is_out_of_memory,
    memory_error,
    threads_error,
)
from mfcli.hub.bundled import is_bundled
from mfcli.inference.engines.base import (
    EngineName,
    EngineOptions,
    Precision,
    check_threads,
    concatenate_outputs,
    cpu_batch_size,
    pictures_per_run,
)
from mfcli.settings import usable_cores

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_FATAL_ONLY = 4


class OnnxRuntimeEngine:
    """An artifact in an ONNX Runtime session."""

    name = EngineName.ONNXRUNTIME
    precision = Precision.FP32
    device = "cpu"
    streams = 2

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        self._threads = options.threads or usable_cores()
        self._pictures_per_run = pictures_per_run(artifact.plan.crop_size)
        self.batch_size = cpu_batch_size(artifact.plan.crop_size, self._threads)
        session_options = onnxruntime.SessionOptions()
        session_options.log_severity_level = _FATAL_ONLY
        session_options.intra_op_num_threads = self._threads
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._free_threads = threading.BoundedSemaphore(self._threads)  # all streams together keep to `threads`
        check_threads(self._threads - 1)  # the session starts as many
        self._outputs = ["logits", *options.extra]
        model = runtime_source(artifact.path, options.extra)
        try:
            self._session = onnxruntime.InferenceSession(
                model, session_options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except Exception as error:  # onnxruntime's exceptions share no base class
            if is_out_of_memory(error):
                raise memory_error(f"load {artifact.path}") from error
            remedy = f"if the file is damaged, delete it and run again: rm {artifact.path}"
            hint = artifact.remedy if is_bundled(artifact.path) else remedy
            raise EngineError(f"ONNX Runtime cannot load {artifact.path}: {first_line(error)}", hint) from error

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (N, 3, H, W) to float32 (N, classes)."""
        return self.compute(batch)[0]

    def compute(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Map float32 (N, 3, H, W) to the logits and what else was asked for."""
        size = min(self._pictures_per_run, -(-len(batch) // self._threads))
        if len(batch) <= size:
            return self._run(batch)
        parts = (batch[start : start + size] for start in range(0, len(batch), size))
        if self._threads == 1:
            return concatenate_outputs(map(self._run, parts))
        try:
            return concatenate_outputs(self._pool.map(self._run, parts))
        except RuntimeError as error:  # the pool starts its threads here
            raise threads_error(self._threads, error) from error

    def _run(self, part: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        try:
            with self._free_threads:
                return tuple(self._session.run(self._outputs, {"input": part}))
        except Exception as error:
            if is_out_of_memory(error):
                raise memory_error(f"classify {len(part)} pictures at once", BatchTooLargeError) from error
            raise EngineError(f"ONNX Runtime failed: {first_line(error)}") from error

    @cached_property
    def _pool(self) -> "ThreadPoolExecutor":
        from concurrent.futures import ThreadPoolExecutor

        return ThreadPoolExecutor(self._threads, "onnxruntime")
