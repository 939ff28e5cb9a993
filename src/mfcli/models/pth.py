"""Reading .pth files, torch's zip format, without torch and without running anything.

The file's pickle is interpreted by a small machine that knows the opcodes of plain data, and an allow-list of names:
the functions that rebuild tensors, the storage types, OrderedDict and the like. None of them is imported or called;
each stands for a step of our own. Memory is bounded by the size of the file, time by the number of opcodes.
"""

import io
import math
import os
import pickletools
import struct
import weakref
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_STORAGE_TYPES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""Element types by the name of the storage class in the module torch."""
_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in _STORAGE_TYPES.values() if name != "bfloat16"}
_DTYPES["bfloat16"] = np.dtype("<u2")  # its bits

_MAX_PICKLE_BYTES = 2**22
"""The pickle of a checkpoint holds names and numbers; that of 1,000 tensors has 100 kB."""
_MAX_STEPS, _BYTES_PER_STEP = 2**20, 32
"""Opcodes that are interpreted: 1,000 tensors take 30,000. A step can make an object of a hundred bytes, so that few
are allowed for a small file."""
_MIN_STEPS = 2**17
_MAX_DIRECTORY_BYTES = 2**22
"""The zip directory of a checkpoint has about 80 bytes for each tensor; Python takes ten times as much memory."""
_MAX_RATIO = 4
"""How many times as large as the file its compressed members may be."""
_MAX_DIMS, _MAX_INT, _MAX_KEY = 32, 2**63, 100


class UnsupportedPthError(Exception):
    """A file that only torch can read: another format, or objects that this reader does not know."""


class CodeInPthError(UnsupportedPthError):
    """A pickle that names something which is neither data nor a tensor; nothing of it was run."""


class DamagedPthError(Exception):
    """A file that contradicts itself."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a file describes it; `read` gives its numbers.

    Attributes:
        dtype: the name of its element type, `bfloat16` among them.
        shape: of the tensor.
        strides: in elements.
        offset: of the first element in the storage, in elements.
        load_storage: reads the storage's numbers; two bytes each for bfloat16.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    load_storage: Callable[[], NDArray[Any]] = field(repr=False)

    def read(self) -> NDArray[Any]:
        """Return a view of the numbers in their own type; bfloat16 as float32, which is a copy.

        Raises:
            DamagedPthError: they are cut off or do not have their checksum.
            OSError: they cannot be read.
        """
        numbers = self.load_storage()
        values = np.ndarray(
            self.shape,
            numbers.dtype,
            buffer=numbers.data,
            offset=self.offset * numbers.itemsize,
            strides=[stride * numbers.itemsize for stride in self.strides],
        )
        return widen_bfloat16(values) if self.dtype == "bfloat16" else values


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 numbers of bfloat16 bits."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


class _BoundedReader(io.BufferedReader):
    """Refuses a long read: zipfile reads the whole directory at once, and makes objects ten times its size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise UnsupportedPthError("a zip directory of unusual size")
        return super().read(size)


def read_pth(path: Path) -> object:
    """Return what a .pth file holds: dictionaries, lists, plain values, and a `StoredTensor` for each tensor.

    The numbers themselves are read later, by `StoredTensor.read`.

    Raises:
        CodeInPthError: it names something that is not on the allow-list.
        DamagedPthError: it is cut off, its checksums do not fit, or it contradicts itself.
        OSError: it cannot be read.
        UnsupportedPthError: it is of a format that only torch reads.
    """
    with _BoundedReader(io.FileIO(path)) as file:
        try:
            if not zipfile.is_zipfile(file):
                raise UnsupportedPthError("not torch's zip format")
            with zipfile.ZipFile(file) as archive:
                return _read_archive(file, archive)
        except (zipfile.BadZipFile, struct.error, EOFError, ValueError, NotImplementedError, OverflowError) as error:
            raise DamagedPthError(f"its zip directory is damaged: {error}") from error


def _read_archive(file: BinaryIO, archive: zipfile.ZipFile) -> object:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise DamagedPthError("two of its members have the same name")
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UnsupportedPthError("not torch's zip format")
    size_bytes = os.fstat(file.fileno()).st_size
    is_compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values())
    if sum(entry.file_size for entry in entries.values()) > (_MAX_RATIO if is_compressed else 1) * size_bytes:
        raise DamagedPthError("its members are larger than the file")
    prefix = pickles[0].removesuffix("data.pkl")
    parts = _Parts(file, entries, prefix, size_bytes)
    if prefix + "byteorder" in entries and parts.read("byteorder").tobytes() != b"little":
        raise UnsupportedPthError("big-endian numbers")
    if entries[pickles[0]].file_size > _MAX_PICKLE_BYTES:
        raise UnsupportedPthError("a pickle of unusual size")
    max_steps = min(_MAX_STEPS, _MIN_STEPS + size_bytes // _BYTES_PER_STEP)
    return _Machine(parts.read("data.pkl").tobytes(), parts, max_steps).run()


class _Parts:
    """The uncompressed members of the zip file; each is checked against its checksum when it is read."""

    def __init__(self, file: BinaryIO, entries: Mapping[str, zipfile.ZipInfo], prefix: str, size_bytes: int) -> None:
        self._descriptor = os.dup(file.fileno())  # read from after the file was closed
        weakref.finalize(self, os.close, self._descriptor)
        self._entries = entries
        self._prefix = prefix
        self._size_bytes = size_bytes
        self._has_checksums = any(entry.CRC for entry in entries.values())  # torch can leave them out
        self._storages: dict[str, NDArray[np.uint8]] = {}

    def read(self, name: str) -> NDArray[np.uint8]:
        entry = self._find(name)
        at = entry.header_offset
        if not 0 <= at <= self._size_bytes - 30 - entry.file_size:
            raise DamagedPthError(f"{name} is cut off")
        name_size, extra_size = struct.unpack("<HH", os.pread(self._descriptor, 4, at + 26))
        data = np.empty(entry.file_size, np.uint8)
        at, done = at + 30 + name_size + extra_size, 0
        while done < len(data):
            count = os.preadv(self._descriptor, [data.data[done:]], at + done)
            if not count:
                raise DamagedPthError(f"{name} is cut off")
            done += count
        if self._has_checksums and zlib.crc32(data.data) != entry.CRC:
            raise DamagedPthError(f"{name} does not have its checksum")
        return data

    def check_storage(self, key: str, dtype: str, count: int) -> None:
        """Check that a storage has as many numbers as the pickle says, without reading it."""
        size_bytes = self._find(f"data/{key}").file_size
        if size_bytes != count * _DTYPES[dtype].itemsize:
            raise DamagedPthError(f"storage {key} has {size_bytes} bytes instead of {count} {dtype} numbers")

    def load_storage(self, key: str, dtype: str) -> NDArray[Any]:
        if key not in self._storages:
            self._storages[key] = self.read(f"data/{key}")
        return self._storages[key].view(_DTYPES[dtype])

    def _find(self, name: str) -> zipfile.ZipInfo:
        entry = self._entries.get(self._prefix + name)
        if entry is None:
            raise DamagedPthError(f"{name} is missing")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise UnsupportedPthError("compressed or encrypted members")
        return entry


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    count: int
    load: Callable[[], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Name:
    """A name of the allow-list, on the machine's stack."""

    text: str


def _rebuild_tensor(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    requires_grad: object = False,  # noqa: ARG001
    hooks: object = None,  # noqa: ARG001
    metadata: object = None,
) -> StoredTensor:
    if metadata:  # a negative or conjugate view
        raise UnsupportedPthError("a tensor that is not plainly stored")
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise DamagedPthError("a tensor is not built from a storage")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or len(shape) > _MAX_DIMS or not all(map(_is_size, numbers)):
        raise DamagedPthError("a tensor has no valid shape")
    if math.prod(shape) > storage.count:
        raise DamagedPthError(f"a tensor of shape {shape} has more numbers than its storage")
    if 0 in shape:
        return StoredTensor(storage.dtype, shape, (0,) * len(shape), 0, storage.load)
    strides = tuple(stride if n > 1 else 0 for n, stride in zip(shape, strides, strict=True))  # of 1, it has no effect
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if not isinstance(offset, int) or offset + last >= storage.count:
        raise DamagedPthError("a tensor ends after its storage")
    return StoredTensor(storage.dtype, shape, strides, offset, storage.load)


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number < _MAX_INT


def _rebuild_parameter(data: object, *_: object) -> object:
    return data


def _make_dict() -> dict[Any, Any]:
    return {}


_CALLS: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "collections.OrderedDict": _make_dict,
    "_codecs.encode": lambda text, *_: text,  # bytes, in protocol 2
    "torch.Size": lambda values: values,
    "argparse.Namespace": lambda *_: {},  # training scripts put their options beside the weights
}
"""What stands for a call of each function or class that a pickle may name; none copies what its arguments hold, because
a pickle can call it a million times with the same ones."""
_MAX_ARGUMENTS = 8


def _check_key(key: object) -> object:
    """Return a dictionary's key if it is a plain value; hashing a nested tuple, or a huge integer, has no bound."""
    if not isinstance(key, str | int | float | bytes | None) or (isinstance(key, int) and abs(key) >= _MAX_INT):
        raise DamagedPthError("a dictionary has a key that is not a plain value")
    return key


class _Machine:
    """Interprets a pickle of plain data and tensors."""

    def __init__(self, data: bytes, parts: _Parts, max_steps: int) -> None:
        self._data = data
        self._parts = parts
        self._max_steps = max_steps
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> object:
        try:
            for step, (opcode, argument, _) in enumerate(pickletools.genops(self._data)):
                if opcode.name == "STOP":
                    return self._pop()
                if step == self._max_steps:
                    raise UnsupportedPthError("a pickle of unusual length")
                self._step(opcode.name, argument)
        except (IndexError, KeyError, ValueError, TypeError, OverflowError) as error:
            raise DamagedPthError(f"its pickle is damaged: {str(error)[:100]}") from error
        raise DamagedPthError("its pickle has no end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "POP":
                self._pop()
            case "POP_MARK":
                self._pop_to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "GLOBAL":
                self._push_name(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                attribute, module = self._pop(), self._pop()
                if not isinstance(module, str) or not isinstance(attribute, str):
                    raise DamagedPthError("a name is not text")
                self._push_name(module, attribute)
            case "BINPERSID":
                stack.append(self._load_storage(self._pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, called = self._pop(), self._pop()
                stack.append(self._call(called, arguments))
            case "BUILD":
                self._pop()  # a state dict's `_metadata`, a Namespace's options: not weights
            case _ if name in _LITERALS:
                stack.append(argument)
            case _:
                self._step_container(name)

    def _step_container(self, name: str) -> None:
        stack = self._stack
        match name:
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(name[-1])
                items = [self._pop() for _ in range(size)]
                stack.append(tuple(reversed(items)))
            case "TUPLE":
                stack.append(tuple(self._pop_to_mark()))
            case "LIST" | "FROZENSET":
                stack.append(self._pop_to_mark())
            case "DICT":
                items = self._pop_to_mark()
                stack.append({})
                self._set_items(items)
            case "APPEND":
                item = self._pop()
                self._top(list).append(item)
            case "APPENDS" | "ADDITEMS":
                items = self._pop_to_mark()
                self._top(list).extend(items)
            case "SETITEM":
                value, key = self._pop(), self._pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case _:
                raise UnsupportedPthError(f"the opcode {name}")

    def _pop(self) -> Any:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise DamagedPthError("its pickle takes more than it has")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _top(self, kind: type[Any]) -> Any:
        top = self._stack[-1]
        if type(top) is not kind:
            raise DamagedPthError(f"its pickle fills a {type(top).__name__} as a {kind.__name__}")
        return top

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_check_key(key)] = value

    def _push_name(self, module: str, attribute: str) -> None:
        text = f"{module}.{attribute}"
        if text not in _CALLS and not (module == "torch" and attribute in _STORAGE_TYPES):
            is_for_torch = text.startswith("torch.") or text in _TORCH_ONLY
            raise UnsupportedPthError(text) if is_for_torch else CodeInPthError(text)
        self._stack.append(_Name(text))

    def _call(self, called: object, arguments: object) -> object:
        if not isinstance(called, _Name) or called.text not in _CALLS or not isinstance(arguments, tuple):
            raise DamagedPthError("its pickle calls something that is not a function")
        if len(arguments) > _MAX_ARGUMENTS:  # each call copies them
            raise DamagedPthError(f"its pickle calls {called.text} with {len(arguments)} arguments")
        return _CALLS[called.text](*arguments)

    def _load_storage(self, identity: object) -> _Storage:
        match identity:
            case ("storage", _Name(text=text), str(key), str(), int(count)) if len(key) < _MAX_KEY:
                dtype = _STORAGE_TYPES[text.removeprefix("torch.")]
                self._parts.check_storage(key, dtype, count)
                return _Storage(dtype, count, partial(self._parts.load_storage, key, dtype))
        raise DamagedPthError("a storage is not described as torch describes it")


_TORCH_ONLY = frozenset(
    [
        *("collections.Counter", "builtins.set", "__builtin__.set", "builtins.bytearray", "__builtin__.bytearray"),
        *("builtins.complex", "__builtin__.complex"),
    ]
)
"""Plain data that torch's own safe reader accepts, as it does some names of torch itself, and this one does not."""

_LITERALS = frozenset(
    [
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    ]
)
"""Opcodes whose argument is the value itself."""
