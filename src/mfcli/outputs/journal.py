"""A JSON Lines file of results that a later run can continue, after any interruption, a kill included.

Rows are appended and flushed one by one; the file is locked, checked and repaired when it is opened. A hidden file
beside it, `.NAME.run`, holds the settings of its run, so that a run with different settings can name the differences.
"""

import base64
import contextlib
import fcntl
import json
import os
import stat
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from mfcli.errors import OutputError
from mfcli.files import write_atomically
from mfcli.outputs.files import check_folder, open_beside, open_text, translate_write_errors
from mfcli.results import PREDICT_SCHEMA, RunSettings
from mfcli.signals import defer_signals

MAX_ROW_BYTES = 2**26
"""No row is longer: one with all of 21,841 classes has 3 MB."""

_ROW_PREFIX = json.dumps({"schema": PREDICT_SCHEMA}, separators=(",", ":")).encode()[:-1]


class RowStatus(Enum):
    """What a journal knows of an input."""

    NEW = "new"
    OK = "ok"
    FAILED = "failed"


class DigestCounter:
    """A multiset of inputs in 12 bytes for each different one; 64-bit digests stand for names."""

    def __init__(self, digests: "array[int]") -> None:
        self._digests, counts = np.unique(np.frombuffer(digests, np.uint64), return_counts=True)
        self._counts = counts.astype(np.int32)

    def take(self, digest: int) -> bool:
        """Remove one occurrence; return whether there was one."""
        index = int(np.searchsorted(self._digests, np.uint64(digest)))
        if index == len(self._digests) or self._digests[index] != digest or not self._counts[index]:
            return False
        self._counts[index] -= 1
        return True


def digest_input(name: bytes, member: str | None) -> int:
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
        retries: the text stream of rows that replace failed ones, None where failed ones stay.
    """

    def __init__(
        self, path: Path, settings: RunSettings, *, overwrite: bool = False, retry_failed: bool = False
    ) -> None:
        """Open or create the file.

        Args:
            path: the file.
            settings: the run whose rows it must hold.
            overwrite: whether to begin with an empty file, which happens in `begin`.
            retry_failed: whether failed inputs are to be classified again.

        Raises:
            OutputError: it holds another run or something else, is in use, or cannot be written.
        """
        check_folder(path)
        self._given_path = path
        self._path = Path(os.path.realpath(path))
        self._settings = settings
        self._settings_file = self._path.with_name(f".{self._path.name}.run")
        self._overwrite = overwrite
        self._side = self._path.with_name(f".{self._path.name}.retry")  # rows that are to replace failed ones
        with translate_write_errors(path):
            self._is_new = not self._path.exists()
            self._obsolete: set[int] = set()
            self._file = self._open_locked()
            try:
                if not overwrite and self._side.exists():
                    self._merge()
                found = _no_digests() if overwrite else self._scan(self._file)
                self._left = {status: DigestCounter(digests) for status, digests in found.items()}
                self._file.seek(0, os.SEEK_END)
                self.rows: TextIO = open_text(self._file)
                self.retries: TextIO | None = open_text(self._side.open("wb")) if retry_failed else None
            except BaseException:
                self._file.close()
                raise

    def begin(self) -> None:
        """Get ready for the first row: empty a file that is to be overwritten, and keep this run's settings."""
        if self._overwrite:
            self._file.seek(0)
            self._file.truncate()
            self._side.unlink(missing_ok=True)
        if _read_settings(self._settings_file) != self._settings:
            with contextlib.suppress(OSError):  # without it, a later message is less exact
                write_atomically(self._settings_file, json.dumps(asdict(self._settings)).encode())

    def take_status(self, name: bytes, member: str | None) -> RowStatus:
        """Return what is known of an input; an input that is named twice needs two rows, so one is used up."""
        digest = digest_input(name, member)
        if self._left[RowStatus.OK].take(digest):
            return RowStatus.OK
        return RowStatus.FAILED if self._left[RowStatus.FAILED].take(digest) else RowStatus.NEW

    def drop_failed(self, containers: set[int]) -> None:
        """Drop the failed rows of containers when retried rows are merged, unless they were retried themselves.

        Args:
            containers: `digest_input` of folders, archives and globs that have given pictures by now.
        """
        self._obsolete = containers

    def close(self) -> None:
        """Flush, merge retried rows, and release the file; a file that was created for no row is deleted.

        Raises:
            OutputError: the file cannot be written.
        """
        with translate_write_errors(self._given_path), defer_signals():
            self.rows.flush()
            if self.retries is not None:
                self.retries.close()
                self._merge()
            if self._is_new:
                self._delete_if_empty()
            self._file.close()

    def _open_locked(self) -> BinaryIO:
        """Open the file and lock it; repeat where another process has replaced it in between."""
        while True:
            file = open(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")  # noqa: PTH123, SIM115
            try:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OutputError(
                        f"{self._given_path} is not a regular file", "send rows there with: mf ... > FILE"
                    )
                _lock(file)
                if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    return file
                file.close()
            except BlockingIOError as error:
                file.close()
                raise OutputError(
                    f"{self._given_path} is being written by another mf", "wait for it, or name another"
                ) from error
            except FileNotFoundError:
                file.close()
            except BaseException:
                file.close()
                raise

    def _scan(self, file: BinaryIO) -> "dict[RowStatus, array[int]]":
        """Check every row, cut off a torn last one, and return the inputs by status.

        Nothing is changed before all rows have been checked.
        """
        found = _no_digests()
        good = 0
        file.seek(0)
        for number, line in enumerate(_read_lines(file), start=1):
            row = _parse_row(line)
            if row is None:
                if _is_torn(line) and not file.read(1):
                    file.truncate(good)
                    break
                raise OutputError(
                    f"line {number} of {self._given_path} is not a row of mf predict", "name another file: output=FILE"
                )
            if row.fields["run"] != self._settings.run:
                raise OutputError(
                    f"{self._given_path} belongs to a different run: {self._describe_difference(row)}",
                    "use the settings that it was begun with, or another file: output=FILE",
                )
            found[RowStatus.OK if row.is_ok else RowStatus.FAILED].append(row.digest)
            good += len(line)
        return found

    def _describe_difference(self, row: _Row) -> str:
        """Name the settings in which the run of a row differs from this one, as far as they are known."""
        theirs = {name: row.fields.get(name) for name in ("model", "weights_sha256")}
        kept = _read_settings(self._settings_file)
        if kept is not None and kept.run == row.fields["run"]:
            theirs = kept.values
        ours = self._settings.values
        for name, meaning in _COARSE_SETTINGS.items():
            if name in theirs and theirs[name] != ours.get(name):
                return meaning.format(theirs=theirs[name], ours=ours.get(name), model=ours.get("model"))
        different = [name for name, value in theirs.items() if ours.get(name) != value]
        fine = [f"{name}={theirs[name]} instead of {name}={ours.get(name)}" for name in different if name != "labels"]
        fine += ["other labels"] if "labels" in different else []
        return ", ".join(fine) or "other settings, or another version of mf"

    def _merge(self) -> None:
        """Put retried rows into the places of the failed rows of the same inputs; see `drop_failed`.

        Every reader of the file then finds one row per input, in input order, byte for byte what an uninterrupted run
        would have written. If they were appended, other tools would count retried inputs twice.
        """
        with self._side.open("r+b") as side, open_beside(self._path) as (merged, publish):
            self._scan(side)
            retried = _RetriedRows(side)
            self._file.seek(0)
            for line in _read_lines(self._file):
                row = _parse_row(line)
                replacement = retried.take(row.digest) if row and not row.is_ok else None
                if replacement is not None:
                    merged.write(replacement)
                elif not row or row.is_ok or row.digest not in self._obsolete:
                    merged.write(line)
            _lock(merged)  # before it is published: the name is never without a lock
            publish()
            old, self._file = self._file, _duplicate(merged)
            old.close()
        self._side.unlink()

    def _delete_if_empty(self) -> None:
        status = os.fstat(self._file.fileno())
        with contextlib.suppress(OSError):
            if not status.st_size and os.path.samestat(status, self._path.stat()):
                self._path.unlink()
                self._settings_file.unlink(missing_ok=True)


_COARSE_SETTINGS = {
    "model": "model={theirs} instead of model={ours}",
    "weights_sha256": "other weights of {model}, SHA-256 {theirs}",
    "format_version": "another version of mf",
    "preprocess": "other preprocessing",
    "artifact": "another version of mf",
}
"""Settings of which the first that differs explains the rest."""


class _RetriedRows:
    """The rows of a side file, by input; only their places are kept in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[int, list[tuple[int, int]]] = {}
        start = 0
        file.seek(0)
        for line in _read_lines(file):
            if row := _parse_row(line):
                self._places.setdefault(row.digest, []).append((start, len(line)))
            start += len(line)
        for places in self._places.values():
            places.reverse()  # the first row of an input is taken first

    def take(self, digest: int) -> bytes | None:
        """Return the next row of an input, None where none is left."""
        places = self._places.get(digest)
        if not places:
            return None
        start, size = places.pop()
        self._file.seek(start)
        return self._file.read(size)


def _read_settings(path: Path) -> RunSettings | None:
    try:
        return RunSettings(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):  # missing or damaged
        return None


def _no_digests() -> "dict[RowStatus, array[int]]":
    return {RowStatus.OK: array("Q"), RowStatus.FAILED: array("Q")}


def _lock(file: BinaryIO) -> None:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _duplicate(file: BinaryIO) -> BinaryIO:
    """Return a second handle of an open file, which keeps its lock when the first is closed."""
    return open(os.dup(file.fileno()), "r+b")  # noqa: PTH123


def _read_lines(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.readline(MAX_ROW_BYTES), b"")


def _is_torn(line: bytes) -> bool:
    """Return whether a line is the beginning of a row, or the zeros that a system crash leaves of one."""
    if line.endswith(b"\n"):
        return False
    is_prefix = line[: len(_ROW_PREFIX)] == _ROW_PREFIX[: len(line)]
    return is_prefix or not line.strip(b"\0")


def _parse_row(line: bytes) -> _Row | None:
    """Return the row of a complete line, None for anything else."""
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
        return _Row(fields, digest_input(raw, member), fields["status"] == "ok")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # UnicodeError is a ValueError
        return None
