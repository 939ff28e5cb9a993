"""What an engine is: something that turns a float32 batch into float32 logits."""

import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from mfcli.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class EngineName(StrEnum):
    """The engines there are; AUTO takes the one that fits device and precision, ONNX Runtime where none is named."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TORCH = "torch"


class Precision(StrEnum):
    """The arithmetic of the large products; logits are float32 in any case."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


MAX_THREADS = 1024
"""More than any machine gains from, and fewer than any refuses."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a model is to be run.

    Attributes:
        device: auto, cpu, cuda, cuda:N or mps; auto is the CPU, but for the torch engine the best there is.
        precision: nothing but fp32 is ever taken without being asked for.
        threads: of the processor; None for all cores that this process may use.
    """

    device: str = "auto"
    precision: Precision = Precision.FP32
    threads: int | None = None


class Engine(Protocol):
    """Runs one model; made by `engines.load_engine`.

    Attributes:
        name: which engine it is.
        precision: the arithmetic.
        device: where it runs: cpu, cuda:0, ...
        batch_size: pictures in a batch that this engine is fastest with here; what --batch-size auto takes.
        streams: calls of `logits` that may overlap, so that nothing rests between two batches.
    """

    name: EngineName
    precision: Precision
    device: str
    batch_size: int
    streams: int

    def logits(self, batch: "NDArray[np.float32]") -> "NDArray[np.float32]":
        """Map normalised pictures, float32 (N, 3, H, W), to logits, float32 (N, classes).

        Raises:
            EngineError: the runtime fails on the batch.
        """
        ...


_PIXELS_PER_RUN = 2 * 224 * 224
_RUNS_PER_THREAD = 4
_MAX_BATCH_SIZE = 128


def pictures_per_run(size: tuple[int, int]) -> int:
    """Return how many pictures of this (height, width) one thread is given at a time.

    Few enough for what is between two layers to stay in the caches: with caformer_s18 at 224x224, two pictures a thread
    were a fifth faster than eight in one run on both threads. Many enough for the products to be large.
    """
    return max(1, _PIXELS_PER_RUN // (size[0] * size[1]))


def cpu_batch_size(size: tuple[int, int], threads: int) -> int:
    """Return the batch that gives each thread a few runs, so that all are busy nearly to its end."""
    return min(_RUNS_PER_THREAD * threads * pictures_per_run(size), _MAX_BATCH_SIZE)


def start_threads(number: int) -> None:
    """Start and end so many threads, because a runtime that may not start its own waits for them forever.

    Raises:
        EngineError: a limit on processes does not let them.
    """
    enough = threading.Event()
    threads = [threading.Thread(target=enough.wait, daemon=True) for _ in range(number)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        raise EngineError(
            f"no more than a few threads can be started here, not {number}", "--threads 1 --workers 1"
        ) from error
    finally:
        enough.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
