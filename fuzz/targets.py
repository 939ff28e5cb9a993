"""What is fuzzed: each target takes bytes from a stranger, and raises an `MfError`, or nothing.

`list_seeds` returns the inputs from which mutations start.
"""

import contextlib
import gzip
import hashlib
import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from mfcli.artifact.file import open_artifact
from mfcli.errors import MfError
from mfcli.hub.pins import read_pins
from mfcli.inputs.archives import iter_members
from mfcli.inputs.codecs import DEFAULT_FORMATS
from mfcli.inputs.decode import decode
from mfcli.inputs.plan import Changes, Plan
from mfcli.inputs.selection import Selection
from mfcli.models.own import read_own_variant
from mfcli.models.pth import CodeInPthError, DamagedPthError, StoredTensor, UnsupportedPthError, read_pth
from mfcli.models.safetensors import read_safetensors
from mfcli.outputs.reader import StoredResults
from mfcli.settings import Settings

CORPUS = Path(__file__).parent / "corpus"
_EXPECTED = (MfError, CodeInPthError, DamagedPthError, UnsupportedPthError)
_LIMITS = Selection(max_bytes=2**22, offline=True)
_MAX_MEMBERS = 1000
_scratch = tempfile.TemporaryDirectory(prefix="mf-fuzz-")


def fuzz_decode(data: bytes) -> None:
    """Decode a picture."""
    decode(io.BytesIO(data), max_pixels=10**6)


def fuzz_zip(data: bytes) -> None:
    """Read all members of a zip."""
    _read_archive("a.zip", data)


def fuzz_tar(data: bytes) -> None:
    """Read all members of a tar, plain or compressed."""
    _read_archive("a.tar", data)


def fuzz_pth(data: bytes) -> None:
    """Read a checkpoint and the numbers of its tensors."""
    found = read_pth(_write("a.pth", data))
    for value in found.values() if isinstance(found, dict) else ():
        if isinstance(value, StoredTensor) and np.prod(value.shape, dtype=float) < 2**24:
            value.read()


def fuzz_safetensors(data: bytes) -> None:
    """Read a checkpoint and the numbers of its tensors."""
    for tensor in read_safetensors(_write("a.safetensors", data)).values():
        if tensor.dtype.startswith(("float", "bfloat")):
            tensor.read()


def fuzz_journal(data: bytes) -> None:
    """Read results back, whatever their format."""
    for _ in StoredResults(io.BytesIO(data), "results"):
        pass


def fuzz_lock_file(data: bytes) -> None:
    """Read pinned checkpoints."""
    read_pins(Settings("bundled", None, False, named_lock_file=_write("mf.lock", data)))


def fuzz_plan(data: bytes) -> None:
    """Read the manifest of a plan."""
    plan = Plan.read(_write("plan.json", data).parent)
    plan.count(range(len(plan.sha256)))


def fuzz_shard(data: bytes) -> None:
    """Find the pictures in a shard that a manifest has the digest of."""
    folder = _write("shard-00000.jsonl", data).parent
    plan = Plan(folder, 1, 1, (hashlib.sha256(data).hexdigest(),))
    for _ in islice(plan.sources(0, _LIMITS, Changes()), _MAX_MEMBERS):
        pass


def fuzz_own_model(data: bytes) -> None:
    """Open a folder of mf train: its arguments, a NUL, and its artifact, which its sidecar fits."""
    arguments, _, artifact = data.partition(b"\0")
    sidecar = {"size_bytes": len(artifact), "sha256": hashlib.sha256(artifact).hexdigest()}
    _write("model.json", json.dumps(sidecar).encode())
    path = _write("model.onnx", artifact)
    open_artifact(path, read_own_variant(_write("args.json", arguments).parent), None, None)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "decode": fuzz_decode,
    "zip": fuzz_zip,
    "tar": fuzz_tar,
    "pth": fuzz_pth,
    "safetensors": fuzz_safetensors,
    "journal": fuzz_journal,
    "lock_file": fuzz_lock_file,
    "plan": fuzz_plan,
    "shard": fuzz_shard,
    "own_model": fuzz_own_model,
}


def run_target(name: str, data: bytes) -> None:
    """Run a target; what it raises then is a bug."""
    with contextlib.suppress(*_EXPECTED):
        TARGETS[name](data)


def list_seeds(name: str) -> list[bytes]:
    """Return the healthy inputs of a target, and those of its folder in the corpus."""
    found = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    return found + {"decode": _make_pictures, "zip": _make_zips, "tar": _make_tars}.get(name, list[bytes])()


def _write(name: str, data: bytes) -> Path:
    path = Path(_scratch.name) / name
    path.write_bytes(data)
    return path


def _read_archive(name: str, data: bytes) -> None:
    members = iter_members(str(_write(name, data)), _LIMITS.takes_member, _LIMITS)
    for member in islice(members, _MAX_MEMBERS):
        if member.opener is not None:
            try:
                member.opener().close()
            except MfError:
                continue


def _make_pictures() -> list[bytes]:
    """Return a small picture in each format that Pillow writes, in several modes."""
    gradient = np.add.outer(np.arange(24), np.arange(32)).astype(np.uint8) * 4
    pictures = []
    for mode in ("RGB", "L", "P", "RGBA", "CMYK", "I;16", "1"):
        image = Image.fromarray(gradient.astype(np.uint16) if mode == "I;16" else gradient)
        image = image if mode == "I;16" else image.convert(mode)
        for format in DEFAULT_FORMATS:
            file = io.BytesIO()
            try:
                image.save(file, format)
            except (OSError, KeyError, ValueError):  # not in this format
                continue
            pictures.append(file.getvalue())
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        file = io.BytesIO()
        Image.fromarray(gradient).convert("RGB").save(file, "TIFF", compression=compression)
        pictures.append(file.getvalue())
    return pictures


def _make_zips() -> list[bytes]:
    archives = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for number in range(3):
                archive.writestr(f"f/{number}.jpg", bytes(range(200)) * number)
        archives.append(file.getvalue())
    return archives


def _make_tars() -> list[bytes]:
    archives = []
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=format) as archive:
            for number in range(3):
                header = tarfile.TarInfo(f"{'f' * 30 * (number + 1)}/{number}.jpg")
                header.size = 200 * number
                archive.addfile(header, io.BytesIO(bytes(200 * number)))
        archives += [file.getvalue(), gzip.compress(file.getvalue())]
    return archives
