"""Reading a checkpoint file: its tensors as NumPy arrays, unwrapped, renamed and matched strictly against a variant.

Nothing in a file is executed, and torch is not needed: safetensors.py and pth.py read the two usual formats. Other
formats of torch go through its weights-only reader, where torch is installed. A file that does not fit is refused with
the first names that differ and the models that it would fit.
"""

import argparse
import importlib
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from mfcli.errors import EngineError, ModelError, OutputError, package_error
from mfcli.files import GIT_LFS_START, known_sha256, weights_read_error
from mfcli.models.matching import match_published, match_variant, to_parameters
from mfcli.models.parameters import Shape, find_num_classes, parameter_shapes
from mfcli.models.pth import CodeInPthError, DamagedPthError, UnsupportedPthError, read_pth
from mfcli.models.registry import Variant
from mfcli.models.safetensors import FLOATS, is_safetensors, read_safetensors, read_table

if TYPE_CHECKING:
    from mfcli.models.metaformer import MetaFormer

Weights = dict[str, NDArray[np.float32]]
"""Float32 arrays by parameter."""

_WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "module", "net")
"""Keys under which trainers store the state dict; averaged weights come first because they are more accurate."""
_MAX_DEPTH = 4
"""The maximum nesting of wrappers."""
_PICKLE_STARTS = (b"P", b"\x80")
"""First bytes of zipped checkpoints and binary pickles; plain text may also parse as a pickle."""
_COUNTERS = frozenset({"n_averaged"})
"""Tensors that are not weights: torch's AveragedModel counts its updates."""

_SAVE_WEIGHTS = "save the weights alone: torch.save(model.state_dict(), FILE), or as .safetensors"


class Tensor(Protocol):
    """A tensor of a file, whose numbers have not been read yet."""

    @property
    def dtype(self) -> str:
        """The name of its element type."""
        ...

    @property
    def shape(self) -> Shape:
        """Its shape."""
        ...

    def read(self) -> NDArray[Any]:
        """Return its numbers in its shape; bfloat16 as float32."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedTensor:
    """A tensor of a file that was read as a whole."""

    dtype: str
    shape: Shape
    numbers: NDArray[Any]

    def read(self) -> NDArray[Any]:
        """Return its numbers in its shape; bfloat16 as float32."""
        return self.numbers.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of a checkpoint that fits a variant.

    Attributes:
        weights: one float32 array per parameter, in the order of `parameter_shapes`.
        num_classes: outputs of the head, as in the file.
    """

    weights: Weights
    num_classes: int


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
    if missing := [name for name in names if find_spec(name) is None]:
        verb = "is" if len(missing) == 1 else "are"
        raise EngineError(f"{' and '.join(missing)} {verb} not installed", f"pip install {' '.join(missing)}")
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken installation raises anything
            raise package_error(name, error) from error


def load_checkpoint(path: Path, variant: Variant, sha256: str | None = None) -> LoadedCheckpoint:
    """Load a checkpoint into a variant's backbone; imports torch.

    Args:
        path: the file.
        variant: the model.
        sha256: the digest that the file had when it was chosen; None if it is unknown.

    Raises:
        EngineError: a package that is needed cannot be loaded.
        ModelError: the file cannot be read, contains code, has other weights, or has changed.
    """
    require_packages("torch", "timm")
    checkpoint = read_checkpoint(path, variant, sha256)
    return LoadedCheckpoint(load_model(checkpoint.weights, variant), checkpoint.num_classes)


def load_model(weights: Mapping[str, NDArray[np.float32]], variant: Variant) -> "MetaFormer":
    """Return a variant's backbone in torch with these weights, in eval mode.

    Args:
        weights: float32 arrays by parameter, as in `Checkpoint`.
        variant: the model.

    Raises:
        EngineError: torch or timm cannot be loaded.
    """
    require_packages("torch", "timm")
    import torch

    from mfcli.models.metaformer import build_model

    num_classes = find_num_classes({name: array.shape for name, array in weights.items()})
    assert num_classes is not None  # weights that were read have a head
    with torch.device("meta"):  # skips the random initialisation
        model = build_model(variant.architecture, num_classes=num_classes)
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    model.to_empty(device="cpu").load_state_dict(state, strict=True)
    return model.eval()


def read_checkpoint(path: Path, variant: Variant, sha256: str | None = None) -> Checkpoint:
    """Read the weights of a checkpoint, which must fit a variant strictly; only the number of classes may differ.

    Args:
        path: the file.
        variant: the model.
        sha256: the digest that the file had when it was chosen; None if it is unknown.

    Raises:
        EngineError: safetensors cannot be loaded.
        ModelError: the file cannot be read, contains code, has other weights, or has changed.
    """
    tensors = read_tensors(path)
    expected, num_classes = _match(str(path), tensors, variant)
    _check_size(path, expected)
    weights = {name: _read_float32(path, name, tensors[name]).reshape(shape) for name, shape in expected.items()}
    if sha256 is not None and known_sha256(path) != sha256:  # a running training may overwrite it
        raise ModelError(f"{path} changed while it was read", "run the same command again")
    return Checkpoint(weights, num_classes)


def _check_size(path: Path, shapes: Mapping[str, Shape]) -> None:
    """Check that a file holds at least two bytes for each number: tensors that share some would multiply its size."""
    if 2 * sum(math.prod(shape) for shape in shapes.values()) > path.stat().st_size:
        raise ModelError(f"{path} holds fewer numbers than its tensors have", _SAVE_WEIGHTS)


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a .pth or .safetensors file, told apart by content, under the paper's parameter names.

    Raises:
        EngineError: safetensors cannot be loaded.
        ModelError: the file cannot be read, is neither, or contains code or no tensors.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if is_safetensors(start):
            require_packages("safetensors")
            tensors: Mapping[str, Tensor] = read_safetensors(path)
        else:
            tensors = _unwrap(path, _read_pth(path, start))
    except OSError as error:
        raise weights_read_error(path, error) from error
    return to_parameters(tensors)


def prove_checkpoint(path: Path, variant: Variant) -> None:
    """Check that a file is a variant's published checkpoint: by the names, shapes and types of its tensors.

    They are read, so that the checksums of a .pth file are compared. Their values prove nothing.

    Args:
        path: the file.
        variant: the model.

    Raises:
        EngineError: safetensors cannot be loaded.
        ModelError: it is not, or it cannot be read.
    """
    tensors = read_tensors(path)
    expected, _ = _match(str(path), tensors, variant, is_published=True)
    _check_size(path, expected)
    for name, tensor in tensors.items():
        _read_float32(path, name, tensor)


def prove_beginning(file: str, beginning: bytes, variant: Variant) -> bool:
    """Check, as `prove_checkpoint` does, what the header of a .safetensors file says, as soon as it has arrived.

    Args:
        file: how messages name the file.
        beginning: its first bytes.
        variant: the model.

    Returns:
        Whether more bytes would tell no more: the table was there, or this is another kind of file.

    Raises:
        ModelError: it is not the variant's published checkpoint.
    """
    if len(beginning) <= 8 or not is_safetensors(beginning):
        return len(beginning) > 8
    if (table := read_table(file, beginning)) is None:
        return False
    tensors = {name: LoadedTensor(dtype, shape, np.empty(0)) for name, (dtype, shape, _) in table.items()}
    _match(file, to_parameters(tensors), variant, is_published=True)
    return True


def _match(
    file: str, tensors: Mapping[str, Tensor], variant: Variant, *, is_published: bool = False
) -> tuple[dict[str, Shape], int]:
    """Match a file's tensors against a variant's, as `match_variant` does; then all must be dense floats."""
    match = match_published if is_published else match_variant
    matched = match(file, {name: tensor.shape for name, tensor in tensors.items()}, variant)
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS.values():
            raise ModelError(f"{file} has {name} as {tensor.dtype}; weights are dense floats", _SAVE_WEIGHTS)
    return matched


def _read_float32(path: Path, name: str, tensor: Tensor) -> NDArray[np.float32]:
    """Read a tensor; only biases begin as zeros, so that others without anything else are damaged.

    A file system may fill up a file with zeros, which a .safetensors file, without checksums, does not notice.
    """
    try:
        numbers = np.ascontiguousarray(tensor.read(), np.float32).reshape(tensor.shape)
        if numbers.size and not numbers.flat[0] and not numbers.any() and not name.endswith("bias"):
            raise ValueError("has nothing but zeros")
        return numbers
    except (DamagedPthError, ValueError, TypeError) as error:
        raise ModelError(f"{path} is not a checkpoint, or is damaged: {name}, {error}", "get the file again") from error
    except OSError as error:
        raise weights_read_error(path, error) from error


def _read_pth(path: Path, start: bytes) -> object:
    try:
        return read_pth(path)
    except CodeInPthError as error:
        raise _contains_code(path) from error
    except DamagedPthError as error:
        raise ModelError(f"{path} is not a checkpoint, or is damaged: {error}", "get the file again") from error
    except UnsupportedPthError as error:
        return _read_with_torch(path, start, str(error))


def _contains_code(path: Path) -> ModelError:
    return ModelError(f"{path} contains code or objects, not only weights; none of it was run", _SAVE_WEIGHTS)


def _read_with_torch(path: Path, start: bytes, reason: str) -> object:
    """Read one of torch's older or rarer formats with its weights-only reader, where torch is installed."""
    if start == GIT_LFS_START:
        raise ModelError(f"{path} is a pointer of Git LFS, not the file itself", "fetch the file: git lfs pull")
    not_a_checkpoint = ModelError(f"{path} is not a checkpoint", "expected a .pth or .safetensors file")
    if start[:1] not in _PICKLE_STARTS:
        raise not_a_checkpoint
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{path} is in a format that only torch reads: {reason}",
            "install torch, or save the weights again: torch.save(model.state_dict(), FILE)",
        ) from error
    except Exception as error:  # a broken installation raises anything
        raise package_error("torch", error) from error
    try:
        # Training scripts store an argparse.Namespace beside the weights; it is plain data.
        with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
            _verify_checksums(file)
            return _convert_tensors(torch.load(file, map_location="cpu", weights_only=True), set())
    except pickle.UnpicklingError as error:
        if re.search("unsupported (global|class)", str(error), re.IGNORECASE):
            raise _contains_code(path) from error
        raise not_a_checkpoint from error
    except Exception as error:  # zipfile and pickle raise almost anything for a damaged file
        raise ModelError(f"{path} is not a checkpoint, or is damaged", "get the file again") from error


def _verify_checksums(file: BinaryIO) -> None:
    """Verify the checksums of a zipped checkpoint, which torch does not; it can also write it without, all zero.

    Raises:
        BadZipFile: one differs.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as parts:
            if any(part.CRC for part in parts.infolist()) and (damaged := parts.testzip()):
                raise zipfile.BadZipFile(damaged)
    file.seek(0)


def _convert_tensors(value: Any, converted: set[int], depth: int = 0) -> object:
    """Return what torch loaded with its tensors converted, at this level and within wrappers."""
    import torch

    if isinstance(value, Mapping) and depth <= _MAX_DEPTH and id(value) not in converted:
        converted.add(id(value))  # a dictionary may contain itself
        wanted = {key: item for key, item in value.items() if key in _WRAPPERS or isinstance(item, torch.Tensor)}
        return {key: _convert_tensors(item, converted, depth + 1) for key, item in wanted.items()}
    if not isinstance(value, torch.Tensor):
        return None
    dtype, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
    if value.layout is not torch.strided or value.is_meta or not value.is_floating_point():
        return LoadedTensor(f"{dtype} ({value.layout}, {value.device})", shape, np.empty(0))
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError("more numbers than are stored")
    return LoadedTensor(dtype, shape, value.detach().float().resolve_neg().resolve_conj().numpy())


def _unwrap(path: Path, loaded: object) -> Mapping[str, Tensor]:
    found = _find_state_dict(loaded, set())
    if not found:
        hint = "expected {name: tensor}, alone or under 'state_dict' or 'model'"
        raise ModelError(f"{path} contains no state dict", hint)
    return found


def _find_state_dict(loaded: object, searched: set[int], depth: int = 0) -> dict[str, Tensor]:
    """Return the tensors under the first wrapper that has some, else those at this level, without counters."""
    if not isinstance(loaded, Mapping) or depth > _MAX_DEPTH or id(loaded) in searched:
        return {}
    searched.add(id(loaded))
    for key in _WRAPPERS:
        if found := _find_state_dict(loaded.get(key), searched, depth + 1):
            return found
    tensors = {k: v for k, v in loaded.items() if isinstance(k, str) and hasattr(v, "read")}
    return {name: tensor for name, tensor in tensors.items() if name not in _COUNTERS}


def write_random(path: Path, variant: Variant) -> None:
    """Write a checkpoint of random weights, reproducible, at scales that keep activations near 1.

    For speed measurements: its predictions are meaningless.

    Raises:
        EngineError: safetensors cannot be loaded.
        OutputError: the file cannot be written.
    """
    require_packages("safetensors")
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    shapes = parameter_shapes(variant.architecture, variant.num_classes)
    try:
        save_file({name: _draw(random, name, shape) for name, shape in shapes.items()}, path)
    except SafetensorError as error:
        raise OutputError(f"cannot write {path}: {error}") from error


def _draw(random: np.random.Generator, name: str, shape: Shape) -> NDArray[np.float32]:
    if name.endswith("random_matrix"):  # its rows sum to one
        matrix: NDArray[np.float32] = np.exp(random.random(shape, np.float32))
        matrix /= matrix.sum(-1, keepdims=True)
        return matrix
    if len(shape) > 1:
        return random.standard_normal(shape, np.float32) * np.float32(np.prod(shape[1:]) ** -0.5)
    return np.full(shape, 0 if name.endswith("bias") else 1, np.float32)
