"""Engines: an artifact goes in, an object that computes logits comes out. One file each, loaded on use."""

from typing import TYPE_CHECKING

from mfcli.engines.base import DEFAULT_OPTIONS, Engine, EngineName, EngineOptions

if TYPE_CHECKING:
    from mfcli.artifact import Artifact


def load_engine(name: EngineName, artifact: "Artifact", options: EngineOptions = DEFAULT_OPTIONS) -> Engine:
    """Load a model into an engine.

    Raises:
        EngineError: the engine is not installed or refuses the model.
        ModelError: the engine needs the checkpoint and it is not there.
    """
    match name:
        case EngineName.AUTO | EngineName.ONNXRUNTIME:
            from mfcli.engines.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(artifact, options)
        case EngineName.TORCH:
            from mfcli.engines.torch import TorchEngine

            return TorchEngine(artifact)
