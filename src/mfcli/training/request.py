"""What `mf train` is asked for."""

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from mfcli.errors import UsageError
from mfcli.inference.engines.base import Precision
from mfcli.settings import DEFAULT_DECODE_TIMEOUT_S


class ClassWeight(StrEnum):
    """What counts the same: every picture, or every class."""

    NONE = "none"
    BALANCED = "balanced"


class OptimizerName(StrEnum):
    """What changes the weights, by timm's names."""

    ADAMW = "adamw"
    LAMB = "lamb"

    @property
    def default_lr(self) -> float:
        """The learning rate that suits it."""
        return 5e-4 if self is OptimizerName.ADAMW else 2e-3


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """How the whole backbone is trained.

    Attributes:
        epochs: passes over the pictures, at most.
        lr: learning rate of the head after the warm-up; that of layers before it is lower. None for the optimizer's.
        batch_size: pictures in a step, an even number.
        optimizer: what changes the weights.
        patience: epochs without a better log loss after which it ends.
        device: auto, cpu, cuda, cuda:N or mps; auto is a GPU if there is one.
        precision: fp32 or bf16.

    Raises:
        UsageError: a value is not valid.
    """

    epochs: int = 20
    lr: float | None = None
    batch_size: int = 32
    optimizer: OptimizerName = OptimizerName.ADAMW
    patience: int = 5
    device: str = "auto"
    precision: Precision = Precision.FP32

    def __post_init__(self) -> None:
        for name in ("epochs", "patience"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} is less than 1", f"{name}=5")
        if self.batch_size < 2 or self.batch_size % 2:
            raise UsageError(f"batch_size={self.batch_size} is not a positive even number", "batch_size=32")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UsageError(f"lr={self.lr:g} is not a positive number", f"lr={self.optimizer.default_lr:g}")
        if self.precision is Precision.FP16:
            raise UsageError("fp16 is too narrow to train in", f"precision={Precision.BF16}")


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What to train on, and how.

    Attributes:
        data: a folder or CSV file, see `inputs.dataset.read_dataset`.
        output: the folder to write.
        model: the base model; None for MF_MODEL or the bundled one.
        weights: the base model's checkpoint; None for the published one.
        class_weight: what counts the same.
        seed: another one divides the pictures differently.
        finetune: how the whole backbone is trained; None for a head alone.
        time_limit_s: when no further strength is tried, and no further epoch begun; None for no limit.
        decode_timeout_s: seconds that decoding a picture may take.
        overwrite: whether an existing folder is replaced.
        resume: whether an existing folder is kept if it comes from the same arguments.
    """

    data: Path
    output: Path
    model: str | None = None
    weights: Path | None = None
    class_weight: ClassWeight = ClassWeight.NONE
    seed: int = 0
    finetune: FinetuneOptions | None = None
    time_limit_s: float | None = None
    decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S
    overwrite: bool = False
    resume: bool = False

    def list_arguments(self) -> dict[str, Any]:
        """Return what shapes the model, as JSON values."""
        return {
            "data": str(self.data),
            "model": self.model,
            "weights": self.weights and str(self.weights),
            "class_weight": self.class_weight.value,
            "seed": self.seed,
            "time_limit_s": self.time_limit_s,
            "finetune": self.finetune is not None,
            **(asdict(self.finetune) if self.finetune else {}),
        }
