"""mfcli classifies pictures with the MetaFormer family, from the shell (`mf`) and from Python.

    import mfcli

    predictor = mfcli.load_predictor("bundled")
    print(predictor.predict("cat.jpg").label)

Public names are loaded on first use, so that importing the package costs nothing. `load_predictor` needs no torch;
`create_model`, the backbone as a torch module, does. `concepts` is a module: WordNet's concepts over the classes.
"""

import os
from typing import TYPE_CHECKING

from mfcli.version import __version__

if TYPE_CHECKING:
    from mfcli.errors import EngineError, FailureCode, MfError, ModelError, NoInputsError, OutputError, UsageError
    from mfcli.inference.model_loading import load_predictor
    from mfcli.inference.predictor import Predictor
    from mfcli.inputs.pictures import Picture
    from mfcli.inputs.sources import Source, iter_sources
    from mfcli.models import concepts
    from mfcli.models.metaformer import create_model
    from mfcli.models.registry import Variant, list_variants
    from mfcli.results import Concept, Failure, Label, PictureResult, Prediction
    from mfcli.runs import RunInfo

# ONNX Runtime 1.29 and later report to their maker, on Linux too and from their import on, unless told not to before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Concept",
    "EngineError",
    "Failure",
    "FailureCode",
    "Label",
    "MfError",
    "ModelError",
    "NoInputsError",
    "OutputError",
    "Picture",
    "PictureResult",
    "Prediction",
    "Predictor",
    "RunInfo",
    "Source",
    "UsageError",
    "Variant",
    "__version__",
    "concepts",
    "create_model",
    "iter_sources",
    "list_variants",
    "load_predictor",
]

_MODULES = {
    "mfcli.errors": "EngineError FailureCode MfError ModelError NoInputsError OutputError UsageError",
    "mfcli.inference.model_loading": "load_predictor",
    "mfcli.inference.predictor": "Predictor",
    "mfcli.inputs.pictures": "Picture",
    "mfcli.inputs.sources": "Source iter_sources",
    "mfcli.models": "concepts",
    "mfcli.models.metaformer": "create_model",
    "mfcli.models.registry": "Variant list_variants",
    "mfcli.results": "Concept Failure Label PictureResult Prediction",
    "mfcli.runs": "RunInfo",
}
"""Where the public names are, as imported above."""


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names.split():
            from importlib import import_module

            if name == "create_model":
                from mfcli.models.checkpoint import require_packages

                require_packages("torch", "timm")
            if name == "concepts":  # makes it an attribute of its package
                import_module("mfcli.models.concepts")
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
