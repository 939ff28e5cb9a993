"""What `mf train` is asked for."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from mfcli.settings import DEFAULT_DECODE_TIMEOUT_S


class ClassWeight(StrEnum):
    """What counts the same: every picture, or every class."""

    NONE = "none"
    BALANCED = "balanced"


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
        time_limit_s: when no further strength is tried; None for no limit.
        decode_timeout_s: seconds that decoding a picture may take.
        overwrite: whether a folder that is there is replaced.
        resume: whether a folder that is there is kept if it comes from the same arguments.
    """

    data: Path
    output: Path
    model: str | None = None
    weights: Path | None = None
    class_weight: ClassWeight = ClassWeight.NONE
    seed: int = 0
    time_limit_s: float | None = None
    decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S
    overwrite: bool = False
    resume: bool = False

    def list_arguments(self) -> dict[str, Any]:
        """Return what shapes the model, as JSON values."""
        arguments = asdict(self) | {"data": str(self.data), "weights": self.weights and str(self.weights)}
        return {name: arguments[name] for name in ("data", "model", "weights", "class_weight", "seed", "time_limit_s")}
