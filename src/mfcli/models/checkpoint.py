"""Loading a checkpoint file into a backbone: read, unwrap, rename parameters, load strictly.

Nothing in a file is executed: pickles are read with weights_only=True. A file that does not fit is refused with the
first names that differ and the models that it would fit.
"""

import argparse
import importlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mfcli.errors import ModelError, OutputError, package_error
from mfcli.files import sha256_of
from mfcli.models.registry import ARCHITECTURES, VARIANTS, Architecture, Variant

if TYPE_CHECKING:
    from torch import Tensor

    from mfcli.models.metaformer import MetaFormer

StateDict = dict[str, "Tensor"]

_WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "module", "net")
"""Keys under which trainers store the state dict; averaged weights come first because they are more accurate."""
_MAX_DEPTH = 4
"""The maximum nesting of wrappers: a dictionary may contain itself."""
_PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes that DataParallel, torch.compile and trainers add to every name, possibly several."""
_BINARY_STARTS = (b"P", b"\x80")
"""First bytes of zipped checkpoints and binary pickles; plain text may also parse as a pickle."""
_FIRST_LAYER = re.compile(
    rf"((?:{'|'.join(map(re.escape, _PREFIXES))})*)(?:downsample_layers\.0\.conv|stem\.conv|patch_embed\.proj)\.weight"
)
"""The stem's weights under the names of the paper's code, of timm, and of the first PoolFormer's code."""

_COUNTERS = frozenset({"n_averaged"})
"""Tensors that are not weights: torch's AveragedModel counts its updates."""

# timm's names on the left; `stages.0.blocks.1.` becomes `stages.0.1.`, and so on.
_TIMM_NAMES = (
    (r"^stem\.conv\.", "downsample_layers.0.conv."),
    (r"^stem\.norm\.", "downsample_layers.0.post_norm."),
    (r"^stages\.(\d)\.downsample\.norm\.", r"downsample_layers.\1.pre_norm."),
    (r"^stages\.(\d)\.downsample\.conv\.", r"downsample_layers.\1.conv."),
    (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
)


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A backbone with the weights of a checkpoint.

    Attributes:
        model: in eval mode, float32.
        num_classes: outputs of the head, as in the file.
    """

    model: "MetaFormer"
    num_classes: int


def require_packages(*names: str) -> None:
    """Import packages, to fail early.

    Raises:
        EngineError: one is not installed or cannot be loaded.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken installation raises anything
            raise package_error(name, error) from error


def load_checkpoint(path: Path, variant: Variant, sha256: str | None = None) -> LoadedCheckpoint:
    """Load a checkpoint into a variant's backbone, strictly; only the number of classes may differ.

    Args:
        path: the file.
        variant: the model.
        sha256: the digest that the file had when it was chosen; None if it is unknown.

    Raises:
        EngineError: a package that is needed cannot be loaded.
        ModelError: the file cannot be read, contains code, has other weights, or has changed.
    """
    require_packages("torch", "timm", "safetensors")
    import torch

    from mfcli.models.metaformer import build_model

    state = to_reference_names(read_state_dict(path))
    head = state.get("head.fc2.weight", state.get("head.weight"))
    num_classes = variant.num_classes if head is None or head.ndim == 0 else max(head.shape[0], 1)
    with torch.device("meta"):  # skips the random initialisation
        model = build_model(variant.architecture, num_classes=num_classes)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    state = _squeeze_1x1_convolutions(state, expected)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if shapes != expected:
        fitting = _find_fitting_architectures(shapes)
        raise ModelError(
            f"{path} does not fit {variant.name}: {_describe_mismatch(shapes, expected)}",
            _suggest_models(fitting, state),
        )
    model.to_empty(device="cpu").load_state_dict(state, strict=True)  # a copy: the tensors may be memory-mapped
    if sha256 is not None and sha256_of(path) != sha256:  # a running training may overwrite it
        raise ModelError(f"{path} changed while it was read", "run the same command again")
    return LoadedCheckpoint(model.eval(), num_classes)


def read_state_dict(path: Path) -> StateDict:
    """Read the tensors of a .pth or .safetensors file, distinguished by content, as float32.

    Raises:
        ModelError: the file cannot be read, is neither, contains code, no tensors, or tensors other than dense floats.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise ModelError(f"cannot read weights from {path}: {error.strerror}") from error
    if start[8:9] == b"{":
        tensors: Mapping[str, Any] = _read_safetensors(path)
    else:
        tensors = _unwrap(path, _read_pickle(path, start))
    prefix = _find_prefix(tensors)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: _to_float32(path, name, tensor) for name, tensor in tensors.items()}


def _find_prefix(names: Iterable[str]) -> str:
    """Return the prefix of the backbone's names; other names belong to something else, such as a loss."""
    found = [match[1] for name in names if (match := _FIRST_LAYER.fullmatch(name))]
    return min(found, key=len, default="")


def _to_float32(path: Path, name: str, tensor: "Tensor") -> "Tensor":
    import torch

    if tensor.layout is torch.strided and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ModelError(
            f"{path} declares {tensor.numel()} values for {name}, but stores fewer",
            "save the weights alone: torch.save(model.state_dict(), FILE)",
        )
    if tensor.layout is not torch.strided or tensor.is_meta or not tensor.is_floating_point():
        raise ModelError(
            f"{path} has {name} as {tensor.dtype}, {tensor.layout}, on {tensor.device}; weights are dense floats",
            "save the weights alone: torch.save(model.state_dict(), FILE)",
        )
    return tensor.float()


def _read_safetensors(path: Path) -> StateDict:
    from safetensors.torch import load, load_file

    try:
        try:
            str(path).encode()
        except UnicodeEncodeError:  # load_file does not accept such a name
            return load(path.read_bytes())
        return load_file(path)
    except Exception as error:  # SafetensorError, and what torch raises for an unknown dtype
        raise ModelError(f"{path} is a damaged safetensors file: {error}", "get the file again") from error


def _read_pickle(path: Path, start: bytes) -> object:
    import torch

    try:
        # Training scripts store an argparse.Namespace beside the weights; it is plain data.
        with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
            _verify_checksums(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if start[:1] in _BINARY_STARTS and re.search("unsupported (global|class)", str(error), re.IGNORECASE):
            raise ModelError(
                f"{path} contains code or objects, not only weights; none of it was run",
                "save the weights alone: torch.save(model.state_dict(), FILE), or as .safetensors",
            ) from error
        raise ModelError(f"{path} is not a checkpoint", "expected a .pth or .safetensors file") from error
    except Exception as error:  # zipfile and pickle raise almost anything for a damaged file
        raise ModelError(f"{path} is not a checkpoint, or is damaged", "get the file again") from error


def _verify_checksums(file: BinaryIO) -> None:
    """Verify the checksums of a zipped checkpoint, which torch does not; torch can also write it without, all zero.

    Raises:
        BadZipFile: one differs.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as parts:
            if any(part.CRC for part in parts.infolist()) and (damaged := parts.testzip()):
                raise zipfile.BadZipFile(damaged)
    file.seek(0)


def _unwrap(path: Path, loaded: object) -> Mapping[str, Any]:
    found = _find_state_dict(loaded)
    if not found:
        hint = "expected {name: tensor}, alone or under 'state_dict' or 'model'"
        raise ModelError(f"{path} contains no state dict", hint)
    return found


def _find_state_dict(loaded: object, depth: int = 0) -> StateDict:
    """Return the tensors under the first wrapper that has some, else those at this level, without counters."""
    import torch

    if not isinstance(loaded, Mapping) or depth > _MAX_DEPTH:
        return {}
    for key in _WRAPPERS:
        if found := _find_state_dict(loaded.get(key), depth + 1):
            return found
    tensors = {k: v for k, v in loaded.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    return {name: tensor for name, tensor in tensors.items() if name not in _COUNTERS}


def to_reference_names(state: StateDict) -> StateDict:
    """Rename the parameters of timm, and of the first PoolFormer's code, to those of the paper's code."""
    if "stem.conv.weight" in state:
        return {_rename_timm(name): tensor for name, tensor in state.items()}
    if "patch_embed.proj.weight" in state:
        return {_rename_poolformer(name): tensor for name, tensor in state.items()}
    return state


def _rename_timm(name: str) -> str:
    for pattern, replacement in _TIMM_NAMES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name


def _rename_poolformer(name: str) -> str:
    """Rename; `network.4.1.` is the third stage's second block, `network.3.proj` the downsampling before it."""
    name = re.sub(
        r"layer_scale_(\d)$", r"layer_scale\1.scale", name.replace("patch_embed.proj", "downsample_layers.0.conv")
    )
    name = re.sub(r"^network\.(\d)\.proj\.", lambda m: f"downsample_layers.{int(m[1]) // 2 + 1}.conv.", name)
    return re.sub(r"^network\.(\d)\.", lambda m: f"stages.{int(m[1]) // 2}.", name)


def _squeeze_1x1_convolutions(state: StateDict, expected: Mapping[str, tuple[int, ...]]) -> StateDict:
    """Drop the trailing dimensions of 1x1 convolutions where the backbone has linear layers."""
    return {
        name: tensor.reshape(shape)
        if (shape := expected.get(name)) and tuple(tensor.shape) == (*shape, 1, 1)
        else tensor
        for name, tensor in state.items()
    }


def write_random(path: Path, variant: Variant) -> None:
    """Write a checkpoint of random weights, reproducible, at scales that keep activations near 1.

    For speed measurements: its predictions are meaningless.

    Raises:
        EngineError: a package that is needed cannot be loaded.
        OutputError: the file cannot be written.
    """
    require_packages("torch", "timm", "safetensors")
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from mfcli.models.metaformer import build_model

    random = torch.Generator().manual_seed(0)
    state = build_model(variant.architecture, num_classes=variant.num_classes).state_dict()
    for name, tensor in state.items():
        if tensor.ndim > 1 and not name.endswith("random_matrix"):
            tensor.normal_(std=tensor[0].numel() ** -0.5, generator=random)
    try:
        save_file(state, path)
    except SafetensorError as error:
        raise OutputError(f"cannot write {path}: {error}") from error


def _describe_mismatch(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    parts = []
    if missing := [name for name in expected if name not in found]:
        parts.append(f"{len(missing)} missing, first {missing[0]}")
    if unexpected := [name for name in found if name not in expected]:
        parts.append(f"{len(unexpected)} unexpected, first {unexpected[0]}")
    if wrong := [name for name in expected if name in found and found[name] != expected[name]]:
        first = wrong[0]
        parts.append(f"{len(wrong)} of another shape, first {first} {found[first]} instead of {expected[first]}")
    return "; ".join(parts)


def _find_fitting_architectures(shapes: Mapping[str, tuple[int, ...]]) -> list[Architecture]:
    """Return the architectures whose tensors have these names and shapes, with a head of as many classes."""
    import torch

    from mfcli.models.metaformer import build_model

    head = shapes.get("head.fc2.weight", shapes.get("head.weight"))
    if not head or head[0] == 0:
        return []
    wanted, fitting = {name: _squeeze_1x1(shape) for name, shape in shapes.items()}, []
    with torch.device("meta"):
        for architecture in ARCHITECTURES.values():
            state = build_model(architecture, num_classes=head[0]).state_dict()
            if {name: tuple(tensor.shape) for name, tensor in state.items()} == wanted:
                fitting.append(architecture)
    return fitting


def _squeeze_1x1(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the linear layer's shape for that of a 1x1 convolution; other shapes are unchanged."""
    return shape[:-2] if len(shape) in (3, 4) and shape[-2:] == (1, 1) else shape


def _suggest_models(fitting: list[Architecture], state: StateDict) -> str:
    if not fitting:
        return "these weights fit no model of mf list-models"
    head = state.get("head.fc2.weight", state.get("head.weight"))
    variants = [v for v in VARIANTS.values() if v.architecture in fitting]
    same_head = [v for v in variants if head is not None and v.num_classes == head.shape[0]]
    return f"these weights fit model={' or '.join(v.name for v in same_head or variants)}"
