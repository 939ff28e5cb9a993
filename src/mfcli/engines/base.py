"""What an engine is: something that turns a float32 batch into float32 logits."""

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


class Engine(Protocol):
    """Runs one model; made by `engines.load_engine`.

    Attributes:
        name: which engine it is.
        precision: the arithmetic, for instance "fp32".
    """

    name: EngineName
    precision: str

    def logits(self, batch: "NDArray[np.float32]") -> "NDArray[np.float32]":
        """Map normalised pictures, float32 (N, 3, H, W), to logits, float32 (N, classes).

        Raises:
            EngineError: the runtime fails on the batch.
        """
        ...
