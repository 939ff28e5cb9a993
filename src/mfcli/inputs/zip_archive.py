"""The members of a zip archive, in natural order; each is unpacked into memory when it is opened."""

import io
import os
import stat
import struct
import threading
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import IO, BinaryIO

from mfcli.errors import FailureCode, PictureError
from mfcli.inputs.members import (
    IS_SPECIAL,
    Member,
    UnpackingBudget,
    check_name,
    check_size,
    refuse_bomb,
    refuse_oversize,
    relative_name,
    translate_archive_errors,
)
from mfcli.inputs.selection import sort_naturally
from mfcli.results import Failure

_CHUNK_BYTES = 2**18
_ENCRYPTED = 0x1
_SIZE_COMES_LATER = 0x8
_NAME_IS_UTF8 = 0x800
_LOCAL_SIGNATURE = b"PK\3\4"
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""Signature, version, flags, method, time, date, CRC-32, packed and unpacked size, lengths of name and extra field."""


class ZipReader:
    """An open zip file, read by one thread at a time and closed when its last member is released."""

    def __init__(self, file: BinaryIO) -> None:
        """Read the central directory.

        Raises:
            PictureError: members share bytes.
            zipfile.BadZipFile: there is none, or it is damaged.
        """
        self._lock = threading.Lock()
        self._zip = zipfile.ZipFile(file)
        self._budget = UnpackingBudget(os.fstat(file.fileno()).st_size)
        weakref.finalize(self, file.close)
        _refuse_overlaps(self._zip.infolist())

    def iter_members(self, takes: Callable[[str], bool], max_bytes: int) -> Iterator[Member]:
        """Yield the members in natural order; the parameters are those of `archives.iter_members`."""
        named = [(_decode_name(info), info) for info in self._zip.infolist() if not info.is_dir()]
        for name, info in sort_naturally(named, lambda item: item[0]):
            if takes(relative_name(name)):
                failure = _check_member(name, info, max_bytes)
                yield Member(name, failure, None if failure else partial(self._open, info, max_bytes))

    def _open(self, info: zipfile.ZipInfo, max_bytes: int) -> BinaryIO:
        with translate_archive_errors(), self._lock, self._zip.open(info) as packed:
            return _unpack(packed, info.compress_size, max_bytes, self._budget)


def iter_zip(file: BinaryIO, takes: Callable[[str], bool], max_bytes: int) -> Iterator[Member]:
    """Yield the members of a zip archive.

    Args:
        file: the archive; it is closed when the last member is released.
        takes: whether a member is wanted.
        max_bytes: the largest member that is read.

    Raises:
        PictureError: it is not a zip archive, or is truncated; then the members before the cut are yielded first.
    """
    begins_as_zip = file.read(4) == _LOCAL_SIGNATURE
    try:
        archive = ZipReader(file)
    except zipfile.BadZipFile as error:
        with file:
            if not begins_as_zip:
                raise PictureError(FailureCode.DECODE, "is not a zip archive") from error
            yield from _salvage(file, takes, max_bytes)
        raise PictureError(FailureCode.TRUNCATED, "is truncated: its table of contents is missing") from error
    yield from archive.iter_members(takes, max_bytes)


def _refuse_overlaps(members: Iterable[zipfile.ZipInfo]) -> None:
    """Refuse members that share bytes: some kilobytes could be unpacked to any size, each member as it should be.

    Raises:
        PictureError: decode.
    """
    end = 0
    for info in sorted(members, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise PictureError(FailureCode.DECODE, "is damaged: its members overlap, as in a decompression bomb")
        end = info.header_offset + _LOCAL_HEADER.size + info.compress_size


def _unpack(packed: IO[bytes], packed_bytes: int, max_bytes: int, budget: UnpackingBudget) -> BinaryIO:
    data = io.BytesIO()
    while chunk := budget.read(packed, _CHUNK_BYTES):
        data.write(chunk)
        refuse_oversize(data.tell(), max_bytes)
        refuse_bomb(data.tell(), packed_bytes)
    data.seek(0)
    return data


def _salvage(file: BinaryIO, takes: Callable[[str], bool], max_bytes: int) -> Iterator[Member]:
    """Yield the members before the cut, in the order of the file, as far as their headers give their sizes.

    zipfile reads nothing of a truncated archive. Of 1,000 pictures in an archive cut to 10, 50 and 90 % of its bytes,
    this reads 100, 501 and 902; of one that was written to a pipe, whose headers lack the sizes, none.
    """
    file.seek(0)
    while (header := file.read(_LOCAL_HEADER.size)).startswith(_LOCAL_SIGNATURE) and len(header) == _LOCAL_HEADER.size:
        _, _, flags, method, _, _, crc, packed_bytes, size_bytes, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        if flags & _SIZE_COMES_LATER or packed_bytes > max_bytes:
            return
        raw_name = file.read(name_bytes)
        file.seek(extra_bytes, os.SEEK_CUR)
        packed = file.read(packed_bytes)
        if len(packed) < packed_bytes or not raw_name:
            return
        info = zipfile.ZipInfo(raw_name.decode("utf-8" if flags & _NAME_IS_UTF8 else "cp437", "replace"))
        info.flag_bits, info.file_size = flags, size_bytes
        name = _decode_name(info)
        if not info.is_dir() and takes(relative_name(name)):
            failure = _check_member(name, info, max_bytes)
            yield Member(
                name,
                failure,
                None if failure else partial(_inflate, packed, method, crc, max_bytes),
                held_bytes=len(packed),
            )


def _inflate(packed: bytes, method: int, crc: int, max_bytes: int) -> BinaryIO:
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PictureError(FailureCode.UNSUPPORTED, f"is packed by method {method}, and the archive is truncated")
    with translate_archive_errors():
        data = packed if method == zipfile.ZIP_STORED else zlib.decompressobj(-15).decompress(packed, max_bytes + 1)
        refuse_oversize(len(data), max_bytes)
        refuse_bomb(len(data), len(packed))
        if zlib.crc32(data) != crc:
            raise zipfile.BadZipFile("its checksum is wrong")
    return io.BytesIO(data)


def _decode_name(info: zipfile.ZipInfo) -> str:
    """Return the name as text; without the UTF-8 flag it should be in code page 437, but is often in UTF-8 anyway."""
    if not info.flag_bits & _NAME_IS_UTF8:
        try:
            return info.orig_filename.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass
    return info.orig_filename


def _check_member(name: str, info: zipfile.ZipInfo, max_bytes: int) -> Failure | None:
    """Return why a member is refused by its header, None for one that is not."""
    if failure := check_name(name):
        return failure
    if info.flag_bits & _ENCRYPTED:
        return Failure(FailureCode.UNSUPPORTED, "is encrypted")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return IS_SPECIAL
    return check_size(info.file_size, max_bytes)
