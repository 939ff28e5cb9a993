"""mfcli classifies pictures with the MetaFormer family, from the shell (`mf`) and from Python.

Public names are loaded on first use, so that importing the package costs nothing: `create_model` (the backbone in
torch), `load_predictor` (an object that classifies pictures, without torch), `list_variants` (the registry) and
`concepts` (a module: WordNet's concepts over the classes).
"""

import os
from typing import TYPE_CHECKING

from mfcli.version import __version__

if TYPE_CHECKING:
    from mfcli.inference.predictor import load_predictor
    from mfcli.models import concepts
    from mfcli.models.metaformer import create_model
    from mfcli.models.registry import list_variants

# ONNX Runtime 1.29 and later report to their maker, on Linux too and from their import on, unless told not to before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["__version__", "concepts", "create_model", "list_variants", "load_predictor"]


def __getattr__(name: str) -> object:
    if name == "concepts":
        from mfcli.models import concepts

        return concepts
    if name == "create_model":
        from mfcli.models.checkpoint import require_packages

        require_packages("torch", "timm")
        from mfcli.models.metaformer import create_model

        return create_model
    if name == "load_predictor":
        from mfcli.inference.predictor import load_predictor

        return load_predictor
    if name == "list_variants":
        from mfcli.models.registry import list_variants

        return list_variants
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
