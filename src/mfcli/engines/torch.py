"""The backbone itself in torch on the CPU in float32: the reference that the other engines are held against."""

import numpy as np
import torch
from numpy.typing import NDArray

from mfcli.artifact import Artifact
from mfcli.checkpoint import load_checkpoint
from mfcli.engines.base import EngineName
from mfcli.errors import EngineError, ModelError
from mfcli.variants import find_variant


class TorchEngine:
    """A checkpoint in the backbone, run eagerly."""

    name = EngineName.TORCH
    precision = "fp32"
    streams = 1
    batch_size = 8

    def __init__(self, artifact: Artifact) -> None:
        if artifact.checkpoint is None:
            raise ModelError(
                f"the torch engine needs the checkpoint of {artifact.variant}",
                f"mf download {artifact.variant}, or add --weights FILE",
            )
        self._model = load_checkpoint(artifact.checkpoint, find_variant(artifact.variant)).model

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (N, 3, H, W) to float32 (N, classes)."""
        try:
            with torch.inference_mode():
                logits = self._model(torch.from_numpy(batch)).numpy()
        except RuntimeError as error:
            raise EngineError(f"torch failed: {error}") from error
        return np.asarray(logits, np.float32)
