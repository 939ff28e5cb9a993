"""Models of the user's own classes: folders that `mf train` writes, as rows like those of the registry."""

import contextlib
import math
import os
from dataclasses import replace
from pathlib import Path

from mfcli.errors import ModelError
from mfcli.files import is_file, is_folder, list_files, read_json
from mfcli.models.parameters import parameter_shapes
from mfcli.models.registry import VARIANTS, Pretraining, Variant
from mfcli.settings import Settings

MODEL_FILE, ARGS_FILE = "model.onnx", "args.json"
"""The artifact, and what it was trained with."""
HEAD_FILE, CHECKPOINT_FILE = "head.safetensors", "model.safetensors"
"""The head with what distances are computed by, and all weights of a fine-tuned model."""
_HINT = "name a folder that mf train wrote, or a model: mf list-models"


def read_own_variant(folder: Path) -> Variant:
    """Return the row of a folder that `mf train` wrote.

    Raises:
        ModelError: it is incomplete, foreign, or of a base model that is unknown.
    """
    path = folder / ARGS_FILE
    try:
        args = read_json(path)
        name, base, num_classes = str(args["name"]), str(args["base"]), int(args["num_classes"])
        if num_classes < 1:
            raise ValueError(num_classes)
    except OSError as error:
        hint = f"to use its weights: weights={folder}" if is_file(folder / "config.json") else _HINT
        raise ModelError(f"{folder} is not a model of mf train: {path.name}: {error.strerror}", hint) from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(f"{folder} is not a model of mf train: {path.name} is damaged", _HINT) from error
    if base not in VARIANTS:
        raise ModelError(f"{folder} is of an unknown base model {base!r}", "it may be of another version of mfcli")
    if not (folder / MODEL_FILE).is_file():
        raise ModelError(f"{folder} has no {MODEL_FILE}", f"train it again into {folder}, with overwrite=True")
    return make_own_variant(VARIANTS[base], name, num_classes, folder)


def read_base(folder: Path) -> tuple[Variant, Path | None]:
    """Return the base model of a folder whose row was read, and the file that its checkpoint was."""
    args = read_json(folder / ARGS_FILE)
    checkpoint = args.get("checkpoint")
    return VARIANTS[args["base"]], Path(checkpoint) if isinstance(checkpoint, str) else None


def find_own_variant(name: str) -> Variant | None:
    """Return the row of a model by the path of its folder, or by its name in the folder of models; None without one.

    Raises:
        ModelError: the folder is damaged.
    """
    models = Settings.from_environ().models_dir
    for folder in (Path(name), *([models / name] if models and name else [])):
        if name and is_folder(folder):
            return read_own_variant(folder)
    return None


def list_similar_folders(name: str) -> list[str]:
    """Return the names of models of `mf train` that are like a path, or like a name in the folder of models."""
    import difflib

    known = {str(path.parent) for path in list_files(Path(name).parent, f"*/{ARGS_FILE}")}
    known |= {own.name for own in list_own_variants(Settings.from_environ().models_dir)}
    return difflib.get_close_matches(os.path.normpath(name), sorted(known), n=2)


def make_own_variant(base: Variant, name: str, num_classes: int, folder: Path) -> Variant:
    """Return the row of a model that has a base model's backbone and a linear head."""
    architecture = replace(base.architecture, mlp_head=False)
    shapes = parameter_shapes(architecture, num_classes)
    return replace(
        base,
        name=name,
        architecture=architecture,
        pretraining=Pretraining.OWN,
        num_classes=num_classes,
        params=sum(math.prod(shape) for shape in shapes.values()),
        published_params_m=None,
        published_macs_g=None,
        published_top1=None,
        timm_top1=None,
        sources=(),
        timm_name=None,
        folder=folder,
    )


def list_own_variants(models_dir: Path | None) -> list[Variant]:
    """Return the rows of a folder of models, sorted by name; what is damaged is left out."""
    found = []
    for path in [] if models_dir is None else list_files(models_dir, f"*/{ARGS_FILE}"):
        with contextlib.suppress(ModelError):
            found.append(read_own_variant(path.parent))
    return found
