"""The interface that all engines implement, and what their CPU implementations share."""

import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from mfcli.errors import threads_error
from mfcli.results import Output

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray


class EngineName(StrEnum):
    """The engines; AUTO picks one by device and precision, ONNX Runtime by default."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TORCH = "torch"


class Precision(StrEnum):
    """The data type of the computation; logits are always float32."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


MAX_THREADS = 1024
"""More than any machine benefits from, and few enough for every runtime to accept."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine runs a model.

    Attributes:
        device: auto, cpu, cuda, cuda:N or mps; auto is the CPU, except for the torch engine, which prefers a GPU.
        precision: the data type of the computation.
        threads: number of CPU threads; None for every core that this process may use.
        extra: what is computed besides the logits.
    """

    device: str = "auto"
    precision: Precision = Precision.FP32
    threads: int | None = None
    extra: tuple[Output, ...] = ()


class Engine(Protocol):
    """Runs one model; `load_engine` returns one.

    Attributes:
        name: the engine's name.
        precision: the data type of the computation.
        device: the device it runs on: cpu, cuda:0, ...
        batch_size: default number of pictures in a batch, chosen for throughput on this device.
        streams: number of concurrent calls of `logits` that keep the device busy between batches.
    """

    name: EngineName
    precision: Precision
    device: str
    batch_size: int
    streams: int

    def logits(self, batch: "NDArray[np.float32]") -> "NDArray[np.float32]":
        """Map normalised pictures, float32 (N, 3, H, W), to logits, float32 (N, classes).

        Raises:
            EngineError: the runtime fails.
        """
        ...

    def compute(self, batch: "NDArray[np.float32]") -> "tuple[NDArray[np.float32], ...]":
        """Map normalised pictures, float32 (N, 3, H, W), to the logits and what the options ask for besides them.

        Raises:
            BatchTooLargeError: the runtime has too little memory for so many pictures.
            EngineError: the runtime fails.
        """
        ...


_PIXELS_PER_RUN = 2 * 224 * 224
_RUNS_PER_THREAD = 4
_MAX_BATCH_SIZE = 128


def pictures_per_run(size: tuple[int, int]) -> int:
    """Return how many pictures of size (height, width) a thread computes in one call of the runtime.

    Few enough for the activations to stay in the CPU's caches: with caformer_s18 at 224x224, two pictures per thread
    were 20 % faster than one call of eight pictures on both threads. Many enough for the matrix products to be large.
    """
    return max(1, _PIXELS_PER_RUN // (size[0] * size[1]))


def cpu_batch_size(size: tuple[int, int], threads: int) -> int:
    """Return the batch size that gives each thread several runs, so that none idles long before the batch ends."""
    return min(_RUNS_PER_THREAD * threads * pictures_per_run(size), _MAX_BATCH_SIZE)


def concatenate_outputs(parts: "Iterable[tuple[NDArray[np.float32], ...]]") -> "tuple[NDArray[np.float32], ...]":
    """Return each output of several parts of a batch as one array."""
    import numpy as np

    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def check_threads(number: int) -> None:
    """Check that threads can be started: a runtime that fails to start its own waits for them forever.

    Raises:
        EngineError: a limit on processes prevents it.
    """
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait, daemon=True) for _ in range(number)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        raise threads_error(number, error) from error
    finally:
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
