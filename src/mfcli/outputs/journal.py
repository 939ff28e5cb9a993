"""A JSON Lines file of results that a later run can continue, after any interruption, a kill included.

Rows are appended and flushed one by one; the file is locked, checked and repaired when it is opened.
"""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import stat
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from mfcli.errors import OutputError
from mfcli.outputs.files import check_folder, open_beside, open_text, translate_write_errors
from mfcli.results import PREDICT_SCHEMA
from mfcli.signals import defer_signals

MAX_ROW_BYTES = 2**26
"""No row is longer: one with all of 21,841 classes has 3 MB."""
_ROW_BEGINS = json.dumps({"schema": PREDICT_SCHEMA}, separators=(",", ":")).encode()[:-1]


class RowStatus(Enum):
    """What a journal knows of an input."""

    NEW = "new"
    OK = "ok"
    FAILED = "failed"


class DigestCounter:
    """How often inputs are there, 12 bytes for each different one; 64-bit digests stand for names."""

    def __init__(self, digests: "array[int]") -> None:
        self._digests, counts = np.unique(np.frombuffer(digests, np.uint64), return_counts=True)
        self._counts = counts.astype(np.int32)

    def take(self, digest: int) -> bool:
        """Whether one is left, which is taken."""
        index = int(np.searchsorted(self._digests, np.uint64(digest)))
        if index == len(self._digests) or self._digests[index] != digest or not self._counts[index]:
            return False
        self._counts[index] -= 1
        return True


def digest_of(name: bytes, member: str | None) -> int:
    """Return 64 bits that stand for an input: the exact bytes of its name, and the member of an archive."""
    import hashlib

    text = name if member is None else name + b"\0" + member.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class _Row:
    """What a journal needs of a row."""

    fields: dict[str, Any]
    digest: int
    is_ok: bool


class Journal:
    """A JSON Lines file of one run, locked, repaired and ready to be appended to.

    Attributes:
        rows: the text stream of new rows.
        retries: the text stream of rows that take failed ones' places, None where failed ones stay.
    """

    def __init__(
        self,
        path: Path,
        run: str,
        *,
        overwrite: bool = False,
        retry_failed: bool = False,
        difference: Callable[[dict[str, Any]], str] = lambda _: "another run",
    ) -> None:
        """Open or make the file.

        Args:
            path: the file.
            run: the run whose rows it must hold.
            overwrite: whether to begin with an empty file, which happens in `begin`.
            retry_failed: whether failed inputs are to be classified again.
            difference: says in a few words how the run of a row differs from this one.

        Raises:
            OutputError: it is of another run, is no such file, is in use, or cannot be written.
        """
        check_folder(path)
        self._shown = path
        self._path = Path(os.path.realpath(path))
        self._run = run
        self._overwrite = overwrite
        self._difference = difference
        self._side = self._path.with_name(f".{self._path.name}.retry")  # rows that are to take failed ones' places
        with translate_write_errors(path):
            self._is_new = not self._path.exists()
            self._holders: set[int] = set()
            self._file = self._locked()
            try:
                if not overwrite and self._side.exists():
                    self._merge()
                found = _no_rows() if overwrite else self._scan(self._file)
                self._counted = {state: DigestCounter(digests) for state, digests in found.items()}
                self._file.seek(0, os.SEEK_END)
                self.rows: TextIO = open_text(self._file)
                self.retries: TextIO | None = open_text(self._side.open("wb")) if retry_failed else None
            except BaseException:
                self._file.close()
                raise

    def begin(self) -> None:
        """Get ready for the first row: now an old file is emptied, if it is to be overwritten."""
        if self._overwrite:
            self._file.seek(0)
            self._file.truncate()
            self._side.unlink(missing_ok=True)

    def _locked(self) -> BinaryIO:
        """Open the file and lock it; again, if another process has put a new one into its place meanwhile."""
        while True:
            file = open(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")  # noqa: PTH123, SIM115
            try:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OutputError(f"{self._shown} is not a regular file", "send rows there with: mf ... > FILE")
                _lock(file)
                if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    return file
                file.close()
            except BlockingIOError as error:
                file.close()
                raise OutputError(
                    f"{self._shown} is being written by another mf", "wait for it, or name another"
                ) from error
            except FileNotFoundError:
                file.close()
            except BaseException:
                file.close()
                raise

    def state_of(self, name: bytes, member: str | None) -> RowStatus:
        """Return what is known of an input, and take one such row from what is left."""
        digest = digest_of(name, member)
        if self._counted[RowStatus.OK].take(digest):
            return RowStatus.OK
        return RowStatus.FAILED if self._counted[RowStatus.FAILED].take(digest) else RowStatus.NEW

    def drop_failed(self, holders: set[int]) -> None:
        """Let failed rows of these go when retried ones are put into their places, unless they were retried themselves.

        Args:
            holders: `digest_of` what has given pictures by now: folders, archives, globs.
        """
        self._holders = holders

    def _scan(self, file: BinaryIO) -> "dict[RowStatus, array[int]]":
        """Check every row, cut off a torn last one, and return the inputs by state.

        Nothing is changed before all rows have been checked.
        """
        found = _no_rows()
        good = 0
        file.seek(0)
        for number, line in enumerate(_lines(file), start=1):
            row = _parsed(line)
            if row is None:
                if _is_torn(line) and not file.read(1):
                    file.truncate(good)
                    break
                raise OutputError(
                    f"line {number} of {self._shown} is no row of mf predict", "name another file with -o"
                )
            if row.fields["run"] != self._run:
                raise OutputError(
                    f"{self._shown} is of another run: {self._difference(_telling(row, file).fields)}",
                    "go on with the settings it was begun with, or name another file with -o",
                )
            found[RowStatus.OK if row.is_ok else RowStatus.FAILED].append(row.digest)
            good += len(line)
        return found

    def _merge(self) -> None:
        """Put the rows of the side file into the places of the failed rows of the same inputs; see `drop_failed`."""
        places: dict[int, list[tuple[int, int]]] = {}  # where the new rows of an input lie in the side file
        with self._side.open("r+b") as side, open_beside(self._path) as (merged, publish):
            self._scan(side)
            side.seek(0)
            start = 0
            for line in _lines(side):
                if new := _parsed(line):
                    places.setdefault(new.digest, []).append((start, len(line)))
                start += len(line)
            for taken in places.values():
                taken.reverse()  # the first is taken first
            self._file.seek(0)
            for line in _lines(self._file):
                row = _parsed(line)
                spots = places.get(row.digest) if row and not row.is_ok else None
                if spots:
                    merged.write(_slice(side, *spots.pop()))
                elif not row or row.is_ok or row.digest not in self._holders:
                    merged.write(line)
            _lock(merged)  # before it is there: the name is never without a lock
            publish()
            old, self._file = self._file, self._reopened(merged)
            old.close()
        self._side.unlink()

    def _reopened(self, merged: BinaryIO) -> BinaryIO:
        """A second handle of the file that was just published, with the lock of the first."""
        descriptor = os.dup(merged.fileno())
        return open(descriptor, "r+b")  # noqa: PTH123

    def close(self) -> None:
        """Flush, put retried rows into their places, and let go of the file; one that was made for no row goes.

        Raises:
            OutputError: the file cannot be written.
        """
        with translate_write_errors(self._shown), defer_signals():
            self.rows.flush()
            if self.retries is not None:
                self.retries.close()
                self._merge()
            if self._is_new:
                self._drop_if_empty()
            self._file.close()

    def _drop_if_empty(self) -> None:
        status = os.fstat(self._file.fileno())
        with contextlib.suppress(OSError):
            if not status.st_size and os.path.samestat(status, self._path.stat()):
                self._path.unlink()


def _no_rows() -> "dict[RowStatus, array[int]]":
    return {RowStatus.OK: array("Q"), RowStatus.FAILED: array("Q")}


def _lock(file: BinaryIO) -> None:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.readline(MAX_ROW_BYTES), b"")


def _is_torn(line: bytes) -> bool:
    """Whether a line is the beginning of a row, or what a crash of the machine leaves of one."""
    if line.endswith(b"\n"):
        return False
    begins = line[: len(_ROW_BEGINS)] == _ROW_BEGINS[: len(line)]
    return begins or not line.strip(b"\0")


def _parsed(line: bytes) -> _Row | None:
    """The row of a whole line, None for anything else."""
    if not line.endswith(b"\n"):
        return None
    try:
        fields = json.loads(line)
        name, exact, member = fields["input"], fields["input_b64"], fields["member"]
        if fields["schema"] != PREDICT_SCHEMA or fields["status"] not in ("ok", "error"):
            return None
        if not isinstance(fields["run"], str) or not isinstance(member, str | None):
            return None
        raw = name.encode() if exact is None else base64.b64decode(exact, validate=True)
        return _Row(fields, digest_of(raw, member), fields["status"] == "ok")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # UnicodeError is a ValueError
        return None


def _telling(row: _Row, file: BinaryIO) -> _Row:
    """The first row of this row's run that has predictions, which say most about it; else the row itself."""
    if row.is_ok:
        return row
    for line in itertools.islice(_lines(file), _TELLING_ROWS):
        other = _parsed(line)
        if other and other.is_ok and other.fields["run"] == row.fields["run"]:
            return other
    return row


_TELLING_ROWS = 10_000


def _slice(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)
