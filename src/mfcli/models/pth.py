"""Reading .pth files, torch's zip format, without torch and without running anything.

The file's pickle is interpreted by a small machine that knows the opcodes of plain data, and an allow-list of names:
the functions that rebuild tensors, the storage types, OrderedDict and the like. None of them is imported or called;
each stands for a step of our own. Memory is bounded by the size of the file.
"""

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

_MAX_PICKLE_BYTES = 2**26
"""The pickle of a checkpoint holds names and numbers; that of 1,000 tensors has 100 kB."""
_MAX_DIMS = 32


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
        if self.dtype == "bfloat16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values


def read_pth(path: Path) -> object:
    """Return what a .pth file holds: dictionaries, lists, plain values, and a `StoredTensor` for each tensor.

    The numbers themselves are read later, by `StoredTensor.read`.

    Raises:
        CodeInPthError: it names something that is not on the allow-list.
        DamagedPthError: it is cut off, its checksums do not fit, or it contradicts itself.
        OSError: it cannot be read.
        UnsupportedPthError: it is of a format that only torch reads.
    """
    with path.open("rb") as file:
        try:
            if not zipfile.is_zipfile(file):
                raise UnsupportedPthError("not torch's zip format")
            with zipfile.ZipFile(file) as archive:
                return _read_archive(file, archive)
        except (zipfile.BadZipFile, struct.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
            raise DamagedPthError(f"its zip directory is damaged: {error}") from error


def _read_archive(file: BinaryIO, archive: zipfile.ZipFile) -> object:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise DamagedPthError("two of its members have the same name")
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UnsupportedPthError("not torch's zip format")
    prefix = pickles[0].removesuffix("data.pkl")
    parts = _Parts(file, entries, prefix)
    if parts.read_optional("byteorder") not in (None, b"little"):
        raise UnsupportedPthError("big-endian numbers")
    if entries[pickles[0]].file_size > _MAX_PICKLE_BYTES:
        raise UnsupportedPthError("a pickle of unusual size")
    return _Machine(parts.read("data.pkl").tobytes(), parts).run()


class _Parts:
    """The uncompressed members of the zip file; each is checked against its checksum when it is read."""

    def __init__(self, file: BinaryIO, entries: Mapping[str, zipfile.ZipInfo], prefix: str) -> None:
        self._descriptor = os.dup(file.fileno())  # read from after the file was closed
        weakref.finalize(self, os.close, self._descriptor)
        self._entries = entries
        self._prefix = prefix
        self._has_checksums = any(entry.CRC for entry in entries.values())  # torch can leave them out
        self._storages: dict[str, NDArray[Any]] = {}
        self._declared: set[str] = set()
        self._budget = os.fstat(self._descriptor).st_size

    def read_optional(self, name: str) -> bytes | None:
        return self.read(name).tobytes() if self._prefix + name in self._entries else None

    def read(self, name: str) -> NDArray[np.uint8]:
        entry = self._find(name)
        header = os.pread(self._descriptor, 30, entry.header_offset)
        name_size, extra_size = struct.unpack("<HH", header[26:30])
        data = np.empty(entry.file_size, np.uint8)
        at, done = entry.header_offset + 30 + name_size + extra_size, 0
        while done < len(data):
            count = os.preadv(self._descriptor, [data.data[done:]], at + done)
            if not count:
                raise DamagedPthError(f"{name} is cut off")
            done += count
        if self._has_checksums and zlib.crc32(data.data) != entry.CRC:
            raise DamagedPthError(f"{name} does not have its checksum")
        return data

    def declare_storage(self, key: str, dtype: str, count: int) -> None:
        """Check that a storage has as many numbers as the pickle says, without reading it."""
        size_bytes = self._find(f"data/{key}").file_size
        if size_bytes != count * _DTYPES[dtype].itemsize:
            raise DamagedPthError(f"storage {key} has {size_bytes} bytes instead of {count} {dtype} numbers")
        if key not in self._declared:
            self._declared.add(key)
            self._budget -= size_bytes  # members that overlap would multiply the file's size
            if self._budget < 0:
                raise DamagedPthError("its members are larger than the file")

    def load_storage(self, key: str, dtype: str) -> NDArray[Any]:
        if key not in self._storages:
            self._storages[key] = self.read(f"data/{key}").view(_DTYPES[dtype])
        return self._storages[key]

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
    if len(shape) != len(strides) or len(shape) > _MAX_DIMS or not all(type(n) is int and n >= 0 for n in numbers):
        raise DamagedPthError("a tensor has no valid shape")
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) > storage.count:
        raise DamagedPthError(f"a tensor of shape {shape} has more numbers than its storage")
    start = 0 if 0 in shape or not isinstance(offset, int) else offset
    if 0 not in shape and start + last >= storage.count:
        raise DamagedPthError("a tensor ends after its storage")
    return StoredTensor(storage.dtype, shape, strides, start, storage.load)


def _rebuild_parameter(data: object, *_: object) -> object:
    return data


def _rebuild_dict(*items: object) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for pair in items[0] if items and isinstance(items[0], list) else ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DamagedPthError("a dictionary is not made of pairs")
        made[_check_key(pair[0])] = pair[1]
    return made


_CALLS: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "collections.OrderedDict": _rebuild_dict,
    "_codecs.encode": lambda text="", *_: (
        text.encode("latin1") if isinstance(text, str) else b""
    ),  # bytes, in protocol 2
    "torch.Size": lambda values=(): tuple(values) if isinstance(values, tuple | list) else (),
    "argparse.Namespace": lambda *_: {},  # training scripts put their options beside the weights
}
"""What stands for a call of each function or class that a pickle may name."""


def _check_key(key: object) -> object:
    """Return a dictionary's key if it is a plain value; hashing a nested tuple could exhaust the C stack."""
    if not isinstance(key, str | int | float | bytes | None):
        raise DamagedPthError("a dictionary has a key that is not a plain value")
    return key


class _Machine:
    """Interprets a pickle of plain data and tensors."""

    def __init__(self, data: bytes, parts: _Parts) -> None:
        self._data = data
        self._parts = parts
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> object:
        try:
            for opcode, argument, _ in pickletools.genops(self._data):
                if opcode.name == "STOP":
                    return self._pop()
                self._step(opcode.name, argument)
        except (IndexError, KeyError, ValueError, TypeError, OverflowError) as error:
            raise DamagedPthError(f"its pickle is damaged: {error}") from error
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
                self._push_name(str(module), str(attribute))
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
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_TUPLE" | "EMPTY_SET":
                stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}[name]())
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
            raise UnsupportedPthError(text) if text in _TORCH_ONLY else CodeInPthError(text)
        self._stack.append(_Name(text))

    def _call(self, called: object, arguments: object) -> object:
        if not isinstance(called, _Name) or called.text not in _CALLS or not isinstance(arguments, tuple):
            raise DamagedPthError("its pickle calls something that is not a function")
        return _CALLS[called.text](*arguments)

    def _load_storage(self, identity: object) -> _Storage:
        match identity:
            case ("storage", _Name(text=text), str(key), str(), int(count)) if count >= 0:
                dtype = _STORAGE_TYPES[text.removeprefix("torch.")]
                self._parts.declare_storage(key, dtype, count)
                return _Storage(dtype, count, partial(self._parts.load_storage, key, dtype))
        raise DamagedPthError("a storage is not described as torch describes it")


_TORCH_ONLY = frozenset(
    [
        *(
            "torch._utils._rebuild_sparse_tensor",
            "torch._utils._rebuild_qtensor",
            "torch._utils._rebuild_meta_tensor_no_storage",
        ),
        *("torch.ComplexFloatStorage", "torch.ComplexDoubleStorage", "torch.storage.UntypedStorage"),
        *("torch.serialization._get_layout", "torch.device", "torch.float32", "torch.float16", "torch.bfloat16"),
    ]
)
"""Data that torch's own safe reader knows and this one does not."""

_LITERALS = frozenset(
    [
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    ]
)
"""Opcodes whose argument is the value itself."""
