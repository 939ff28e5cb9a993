"""What an engine is: something that turns a float32 batch into float32 logits."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class EngineName(StrEnum):
    """The engines there are; AUTO takes the portable default."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    TORCH = "torch"


class Precision(StrEnum):
    """The arithmetic of the products; FP32 is the reference."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine is to run.

    Attributes:
        device: auto, cpu, cuda, cuda:N or mps.
        precision: the arithmetic.
        threads: cores that the engine may use; None for all that the process may.
        streams: batches computed at the same time, which share the cores; None for what gives the most pictures a
            second, 1 for the shortest time to one answer.
    """

    device: str = "auto"
    precision: Precision = Precision.FP32
    threads: int | None = None
    streams: int | None = 1


DEFAULT_OPTIONS = EngineOptions()


class Engine(Protocol):
    """Runs one model; made by `engines.load_engine`.

    Attributes:
        name: which engine it is.
        precision: the arithmetic.
        device: where it runs, for instance "cpu".
        streams: calls of `logits` that may run at the same time and profit from it.
        batch_size: pictures in a batch that suit it.
    """

    name: EngineName
    precision: Precision
    device: str
    streams: int
    batch_size: int

    def logits(self, batch: "NDArray[np.float32]") -> "NDArray[np.float32]":
        """Map normalised pictures, float32 (N, 3, H, W), to logits, float32 (N, classes).

        Raises:
            EngineError: the runtime fails on the batch.
        """
        ...
