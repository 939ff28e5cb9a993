"""Torch's zip format read without torch: the same numbers, nothing run, memory bounded by the file."""

import argparse
import collections
import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mfcli.models.pth import CodeInPthError, DamagedPthError, StoredTensor, UnsupportedPthError, read_pth


def saved(value: object, path: Path, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def rewritten(path: Path, changes: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> Path:
    """The file with other members; None removes one."""
    parts = members(path)
    prefix = next(name for name in parts if name.endswith("/data.pkl")).removesuffix("data.pkl")
    parts |= {prefix + name: data for name, data in changes.items() if data is not None}
    for name in [name for name, data in changes.items() if data is None]:
        del parts[prefix + name]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def with_pickle(data: bytes, tmp_path: Path) -> Path:
    return rewritten(saved({"a": torch.zeros(4)}, tmp_path / "x.pth"), {"data.pkl": data})


BASE = torch.arange(24, dtype=torch.float32)


@pytest.mark.parametrize(
    "tensor",
    [
        BASE.reshape(2, 3, 4),
        BASE.reshape(4, 6).t(),
        BASE[5:11],
        BASE.reshape(4, 6)[1:3, ::2],
        BASE.half(),
        BASE.bfloat16() / 7,
        BASE.double(),
        BASE.long(),
        BASE > 5,
        torch.tensor(3.5),
        torch.zeros(0, 3),
        torch.nn.Parameter(BASE.clone()),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_a_tensor_is_what_torch_reads(tensor: torch.Tensor, tmp_path: Path) -> None:
    loaded = read_pth(saved({"a": tensor}, tmp_path / "x.pth"))
    assert isinstance(loaded, dict)
    stored = loaded["a"]
    assert isinstance(stored, StoredTensor)
    assert stored.shape == tuple(tensor.shape)
    assert str(tensor.dtype) == f"torch.{stored.dtype}"
    expected = tensor.detach().float() if tensor.dtype is torch.bfloat16 else tensor.detach()
    assert np.array_equal(stored.read(), expected.numpy())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_everything_that_trainers_put_beside_the_weights(protocol: int, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    value = {
        "state_dict": model.state_dict(),  # an OrderedDict with _metadata
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
        "args": argparse.Namespace(lr=1e-3, model="caformer_s18"),
        "epoch": 300,
        "metric": 83.6,
        "history": [(1, 2.5), None, True, "text", b"bytes", -(2**70)],
        "size": torch.Size([3, 224, 224]),
        7: collections.OrderedDict(a=1),
    }
    loaded = read_pth(saved(value, tmp_path / "x.pth", pickle_protocol=protocol))
    assert isinstance(loaded, dict)
    assert list(loaded["state_dict"]) == list(model.state_dict())
    history = [item if item != "bytes" else b"bytes" for item in loaded["history"]]  # protocol 2 has no bytes
    assert (loaded["epoch"], loaded["metric"], history) == (300, 83.6, value["history"])
    assert (loaded["size"], loaded[7]) == ((3, 224, 224), {"a": 1})


def test_tensors_that_share_a_storage(tmp_path: Path) -> None:
    base = torch.arange(12, dtype=torch.float32)
    loaded = read_pth(saved({"a": base, "b": base[3:6]}, tmp_path / "x.pth"))
    assert isinstance(loaded, dict)
    assert np.shares_memory(loaded["a"].read(), loaded["b"].read())


class Runs:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("function", [print, eval, getattr, torch.load, __import__, open])
def test_code_is_refused_and_not_run(
    function: Any, protocol: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = with_pickle(pickle.dumps({"a": Runs(function, "print('ran')")}, protocol=protocol), tmp_path)
    with pytest.raises(UnsupportedPthError):
        read_pth(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02ctorch._utils\n__builtins__\n.",
        b"\x80\x02ctorch\nFloatStorage.__reduce__\n.",
        b"\x80\x04\x8c\x05torch\x8c\x04load\x93.",
        b"(ios\nsystem\n.",  # INST
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02cargparse\nNamespace\n)\x81}b.",
    ],
)
def test_names_beside_the_allow_list_and_odd_opcodes(data: bytes, tmp_path: Path) -> None:
    path = with_pickle(data, tmp_path)
    if b"Namespace" in data:
        assert read_pth(path) == {}
        return
    with pytest.raises(UnsupportedPthError):
        read_pth(path)


NESTED = 10_000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x02}",
        b"\x80\x02}}s.",
        b"\x80\x02e.",
        b"\x80\x02(e.",
        b"\x80\x02]K\x01K\x02s.",
        b"\x80\x02h\x07.",
        b"\x80\x020.",
        b"\x80\x02\x85\x86\x87.",
        b"\x80\x02}" + b")" + b"\x85" * NESTED + b"K\x01s.",  # a key that is deeply nested
        b"\x80\x02}K\x01ccollections\nOrderedDict\n\x85Rs.",
        b"\x80\x02K\x05)R.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02X\xff\xff\xff\xffab.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"ab.",  # BINBYTES8 of a terabyte
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"ab.",  # BYTEARRAY8
        b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}",  # FRAME without an end
        b"\x80\x02\x8b" + struct.pack("<i", -5) + b".",
        b"\x80\x02I" + b"9" * 10_000 + b"\n.",
        b"\xff\xfe",
    ],
)
def test_damaged_pickles(data: bytes, tmp_path: Path) -> None:
    with pytest.raises((DamagedPthError, UnsupportedPthError)):
        read_pth(with_pickle(data, tmp_path))


def test_a_large_memo_index_takes_no_memory(tmp_path: Path) -> None:
    path = with_pickle(b"\x80\x02}r\xff\xff\xff\xff.", tmp_path)
    tracemalloc.start()
    assert read_pth(path) == {}
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def tensor_pickle(storage: str = "0", count: int = 4, offset: int = 0, shape: Any = (4,), strides: Any = (1,)) -> bytes:
    """The pickle of one tensor whose numbers may lie."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, storage, "cpu", count) if value == "STORAGE" else None

    data = io.BytesIO()
    rebuild = torch._utils._rebuild_tensor_v2
    Pickler(data, 2).dump({"a": Runs(rebuild, "STORAGE", offset, shape, strides, False, collections.OrderedDict())})
    return data.getvalue()


@pytest.mark.parametrize(
    "lie",
    [
        {"storage": "7"},
        {"storage": "../data.pkl"},
        {"count": 5},
        {"count": 2**60},
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**70},
        {"shape": (5,)},
        {"shape": (2, 2), "strides": (4, 1)},
        {"shape": (4, 4), "strides": (0, 1)},  # more numbers than are stored
        {"shape": (2**40,), "strides": (0,)},
        {"shape": (-1,)},
        {"shape": (True,)},
        {"shape": (4.0,)},
        {"strides": (-1,)},
        {"shape": (1,) * 40, "strides": (1,) * 40},
        {"shape": [4]},
        {"strides": ()},
    ],
    ids=str,
)
def test_tensors_that_lie(lie: dict[str, Any], tmp_path: Path) -> None:
    assert read_pth(with_pickle(tensor_pickle(), tmp_path))
    with pytest.raises(DamagedPthError):
        read_pth(with_pickle(tensor_pickle(**lie), tmp_path))


def test_any_bit_that_flips_is_found(tmp_path: Path) -> None:
    path = saved({"a": torch.arange(50.0)}, tmp_path / "x.pth")
    whole = path.read_bytes()
    for position in range(0, len(whole), 17):
        data = bytearray(whole)
        data[position] ^= 16
        path.write_bytes(data)
        try:
            loaded = read_pth(path)
            assert isinstance(loaded, dict)
            numbers = loaded["a"].read()
        except (DamagedPthError, UnsupportedPthError):
            continue
        assert np.array_equal(numbers, np.arange(50.0))  # padding, dates and the like


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_file_that_is_cut_off(share: float, tmp_path: Path) -> None:
    path = saved({"a": torch.arange(5000.0)}, tmp_path / "x.pth")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises((DamagedPthError, UnsupportedPthError)):
        read_pth(path)


def test_archives_that_only_torch_reads(tmp_path: Path) -> None:
    path = saved({"a": torch.zeros(4)}, tmp_path / "x.pth")
    old = saved({"a": torch.zeros(4)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for odd in (
        old,
        rewritten(saved({"a": torch.zeros(4)}, tmp_path / "big.pth"), {"byteorder": b"big"}),
        rewritten(saved({"a": torch.zeros(4)}, tmp_path / "small.pth"), {}, zipfile.ZIP_DEFLATED),
        rewritten(saved({"a": torch.zeros(4)}, tmp_path / "none.pth"), {"data.pkl": None}),
    ):
        with pytest.raises(UnsupportedPthError):
            read_pth(odd)
    assert read_pth(path)


def test_checksums_may_be_left_out(tmp_path: Path) -> None:
    path = saved({"a": torch.arange(50.0)}, tmp_path / "x.pth")
    with zipfile.ZipFile(path) as archive:
        checksums = [struct.pack("<I", entry.CRC) for entry in archive.infolist()]
    data = path.read_bytes()
    for checksum in checksums:
        data = data.replace(checksum, bytes(4))
    path.write_bytes(data)
    loaded = read_pth(path)
    assert isinstance(loaded, dict)
    assert np.array_equal(loaded["a"].read(), np.arange(50.0))


def test_members_that_overlap_do_not_multiply_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    tensors = {str(number): torch.full((25_000,), float(number)) for number in range(40)}
    data = bytearray(saved(tensors, path).read_bytes())
    with zipfile.ZipFile(path) as archive:
        first = archive.getinfo(next(n for n in archive.namelist() if n.endswith("data/0")))
        size, end = 30 * 100_000, archive.start_dir
    at = end
    while data[at : at + 4] == b"PK\1\2":  # every storage claims 3 MB at the place of the first
        name_size, extra_size, comment_size = struct.unpack("<HHH", data[at + 28 : at + 34])
        if b"/data/" in data[at + 46 : at + 46 + name_size]:
            data[at + 20 : at + 28] = struct.pack("<II", size, size)
            data[at + 42 : at + 46] = struct.pack("<I", first.header_offset)
        at += 46 + name_size + extra_size + comment_size
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(DamagedPthError):
        read_pth(path)
    assert tracemalloc.get_traced_memory()[1] < 4 * len(data)
    tracemalloc.stop()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


CALL = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"
LONG = b"\x8b" + struct.pack("<i", 500_000) + b"\x7f" * 500_000
"""An integer of a million digits."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04" + b"]" * 2_000_000 + b".",
        b"\x80\x04" + b"}" * 2_000_000 + b".",
        b"\x80\x04" + b"\x8f" * 2_000_000 + b".",  # EMPTY_SET
        b"\x80\x04N" + b"\x94" * 2_000_000 + b".",  # MEMOIZE
        b"\x80\x02" + b"N0" * 2_000_000 + b"N.",
        b"\x80\x04)" + b"2\x86" * 40 + b"\x8c\x01a\x93.",  # a name that is a tuple of 2**40 tuples
        b"\x80\x02]("
        + b"".join(b"J" + struct.pack("<i", i) + b"N\x86" for i in range(5000))
        + b"eq\x000ccollections\nOrderedDict\nq\x010"
        + b"h\x01h\x00\x85R" * 10_000
        + b".",  # 10,000 copies of a dictionary
        b"\x80\x02" + LONG + b"q\x00" + CALL + STORAGE + b"K\x00(" + b"h\x00" * 32 + b"t(" + b"h\x00" * 32 + b"ttR.",
        b"\x80\x02" + LONG + b"q\x000}" + b"h\x00Ns" * 100_000 + b".",  # a key whose hash takes long
        b"\x80\x02(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0" * 10**6) + text("cpu") + b"K\x04tQ.",
        b"\x80\x02F" + b"x" * 2_000_000 + b"\n.",
        CALL + STORAGE + b"K\x00K\x02\x85\x8a\x09" + (2**64).to_bytes(9, "little") + b"\x85\x86R.",
    ],
    ids=range(12),
)
def test_pickles_that_would_take_long_or_much_memory(data: bytes, tmp_path: Path) -> None:
    path = with_pickle(data, tmp_path)
    tracemalloc.start()
    with pytest.raises((DamagedPthError, UnsupportedPthError)) as caught:
        read_pth(path)
    assert tracemalloc.get_traced_memory()[1] < 4 * path.stat().st_size + 20e6
    tracemalloc.stop()
    assert len(str(caught.value)) < 200


def test_functions_that_are_called_many_times_copy_nothing(tmp_path: Path) -> None:
    for function in (b"c_codecs\nencode\n", b"ctorch\nSize\n"):
        calls = b"q\x000" + function + b"q\x010" + b"h\x01h\x00\x85R" * 1000
        path = with_pickle(b"\x80\x02" + text("a" * 2**20) + calls + b".", tmp_path)
        tracemalloc.start()
        read_pth(path)
        assert tracemalloc.get_traced_memory()[1] < 8e6
        tracemalloc.stop()


def test_a_stride_without_an_effect(tmp_path: Path) -> None:
    call = CALL + b"(" + STORAGE + b"K\x01K\x01\x85\x8a\x08" + (2**62).to_bytes(8, "little") + b"\x85tR"
    stored = read_pth(rewritten(with_pickle(b"\x80\x02" + call + b".", tmp_path), {"data/0": bytes(range(16))}))
    assert isinstance(stored, StoredTensor)
    assert stored.read().tobytes() == bytes(range(4, 8))


def test_a_storage_of_two_types(tmp_path: Path) -> None:
    double = STORAGE.replace(b"Float", b"Double").replace(b"K\x04", b"K\x02")
    tensors = [
        text(name) + CALL + b"(" + storage + b"K\x00" + size + b"\x85K\x01\x85tR"
        for name, storage, size in (("a", double, b"K\x02"), ("b", STORAGE, b"K\x04"))
    ]
    data = b"\x80\x02}(" + b"".join(tensors) + b"u."
    loaded = read_pth(rewritten(with_pickle(data, tmp_path), {"data/0": np.ones(2).tobytes()}))
    assert isinstance(loaded, dict)
    assert loaded["a"].read().tolist() == [1, 1]
    assert np.array_equal(loaded["b"].read(), np.ones(2).view(np.float32))


def test_a_directory_of_many_members(tmp_path: Path) -> None:
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 200_000 * len(entry), 0, 0)
    (tmp_path / "x.pth").write_bytes(entry * 200_000 + end)
    tracemalloc.start()
    with pytest.raises(UnsupportedPthError, match="directory of unusual size"):
        read_pth(tmp_path / "x.pth")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("size", "offset"), [(2**33, 0), (2**45, 0), (2**62, 0), (2**64 - 1, 0), (6, 2**40), (6, 2**63), (6, 2**64 - 1)]
)
def test_a_member_whose_size_or_place_is_a_lie(size: int, offset: int, tmp_path: Path) -> None:
    path = saved({"a": torch.zeros(4)}, tmp_path / "x.pth")
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start, (first, *others) = archive.start_dir, archive.infolist()
    assert first.filename.endswith("data.pkl")
    directory = b""
    for entry, numbers in [(first, (size, size, offset)), *((o, (o.file_size, o.file_size, 0)) for o in others)]:
        name, extra = entry.filename.encode(), struct.pack("<HH3Q", 1, 24, *numbers)
        lengths = (len(name), len(extra), 0, 0, 0, 0, 2**32 - 1)
        fields = (b"PK\1\2", 45, 45, 0, 0, 0, 33, entry.CRC, 2**32 - 1, 2**32 - 1)
        directory += struct.pack("<4s6H3L5H2L", *fields, *lengths) + name + extra
    count = len(others) + 1
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), start, 0)
    path.write_bytes(data[:start] + directory + end)
    tracemalloc.start()
    with pytest.raises(DamagedPthError):
        read_pth(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = saved({"a": torch.zeros(4)}, tmp_path / "x.pth")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(next(n for n in archive.namelist() if n.endswith("data.pkl")), pickle.dumps({}))
    with pytest.raises(DamagedPthError, match="the same name"):
        read_pth(path)


def test_code_says_what_it_names(tmp_path: Path) -> None:
    with pytest.raises(CodeInPthError, match="os.system"):
        read_pth(with_pickle(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", tmp_path))


def test_calls_with_many_arguments_are_refused(tmp_path: Path) -> None:
    many = b"(" + b"K\x01" * 1000 + b"tq\x01"  # a memoized tuple
    data = b"\x80\x02" + many + b"ccollections\nOrderedDict\nh\x01R."
    with pytest.raises(DamagedPthError, match="with 1000 arguments"):
        read_pth(with_pickle(data, tmp_path))
