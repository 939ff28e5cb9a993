"""Files that results go to: whole ones that appear when they are complete, and lines that are there at once.

Every format but JSON Lines is written beside its target and renamed at the end. JSON Lines is appended to and flushed
row by row, so that `Journal` can go on with it after any interruption, a kill included.
"""

import base64
import contextlib
import fcntl
import io
import json
import os
import stat
from array import array
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from mfcli.errors import OutputError
from mfcli.results import PREDICT_SCHEMA

RETRY_SUFFIX = ".retry"
"""Of the file beside a journal that collects new rows of failed inputs until they take the old ones' places."""


class State(Enum):
    """What a journal knows of an input."""

    NEW = "new"
    OK = "ok"
    FAILED = "failed"


def refuse_existing(path: Path) -> None:
    """Raise where a file may not be written because it is there, or cannot be because its folder is not.

    Raises:
        OutputError: it exists and is a file or a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder", "name a file: -o results.jsonl")
    if path.is_file() and path.stat().st_size:
        raise OutputError(f"{path} exists", "--overwrite replaces it; --resume goes on with a .jsonl file")
    _need_folder(path)


def _need_folder(path: Path) -> None:
    if path.is_dir():
        raise OutputError(f"{path} is a folder", "name a file: -o results.jsonl")
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}", f"mkdir -p {path.parent}")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk says of writing `path` into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}", "free some space, or name another file with -o"
        ) from error


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[TextIO]:
    """Give a text stream whose file appears at `path` at the end, whole: also when the body was interrupted.

    What is no regular file, a terminal or a pipe, is written directly. After an OSError nothing appears.

    Raises:
        OutputError: the file cannot be written.
    """
    _need_folder(path)
    with writing(path):
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            with _text(path.open("wb")) as stream:
                yield stream
            return
        target = Path(os.path.realpath(path))  # a link stays a link
        partial = target.with_name(f".{target.name[:100]}.{os.getpid()}.part")
        stream = _text(partial.open("wb"))
        try:
            yield stream
        except OSError:
            with contextlib.suppress(OSError):
                stream.close()
            partial.unlink(missing_ok=True)
            raise
        except BaseException:
            _publish(stream, partial, target)
            raise
        _publish(stream, partial, target)


def _publish(stream: TextIO, partial: Path, target: Path) -> None:
    try:
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()
        with contextlib.suppress(OSError):  # the mode of the file that is replaced
            partial.chmod(stat.S_IMODE(target.stat().st_mode))
        partial.replace(target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _text(file: BinaryIO) -> TextIO:
    return io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")


class Counted:
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


def _digest_of_row(row: dict[str, Any]) -> int:
    exact = row.get("input_b64")
    name = base64.b64decode(exact) if exact else row["input"].encode()
    return digest_of(name, row["member"])


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
            overwrite: whether to begin with an empty file.
            retry_failed: whether failed inputs are to be classified again.
            difference: says in a few words how the run of a row differs from this one.

        Raises:
            OutputError: it is of another run, is no such file, is in use, or cannot be written.
        """
        _need_folder(path)
        self._path = path
        self._run = run
        self._difference = difference
        self._side = path.with_name(path.name + RETRY_SUFFIX)
        with writing(path):
            self._file = self._locked()
            try:
                if overwrite:
                    self._file.truncate(0)
                    self._side.unlink(missing_ok=True)
                elif self._side.exists():
                    self._merge()
                self._counted = {state: Counted(digests) for state, digests in self._scan(self._file, path).items()}
            except BaseException:
                self._file.close()
                raise
            self._file.seek(0, os.SEEK_END)
            self.rows: TextIO = _text(self._file)
            self.retries: TextIO | None = _text(self._side.open("wb")) if retry_failed else None

    def _locked(self) -> BinaryIO:
        file = open(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")  # noqa: PTH123, SIM115
        try:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OutputError(f"{self._path} is not a regular file", "send rows there with: mf ... > FILE")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise OutputError(f"{self._path} is being written by another mf", "wait for it, or name another") from error
        except BaseException:
            file.close()
            raise
        return file

    def state_of(self, name: bytes, member: str | None) -> State:
        """Return what is known of an input, and take one such row from what is left."""
        digest = digest_of(name, member)
        if self._counted[State.OK].take(digest):
            return State.OK
        return State.FAILED if self._counted[State.FAILED].take(digest) else State.NEW

    def _scan(self, file: BinaryIO, path: Path) -> dict[State, "array[int]"]:
        """Check every row, cut off a torn last one, and return the inputs by state."""
        digests = {State.OK: array("Q"), State.FAILED: array("Q")}
        file.seek(0)
        good = 0
        for number, line in enumerate(file, start=1):
            row = _parsed(line)
            if row is None:
                if file.read(1):
                    raise OutputError(
                        f"line {number} of {path} is no row of mf predict", "name another file with -o, or --overwrite"
                    )
                break  # torn
            if row["run"] != self._run:
                raise OutputError(
                    f"{path} is of another run: {self._difference(row)}",
                    "go on with the settings it was begun with, or name another file with -o",
                )
            digests[State.OK if row["status"] == "ok" else State.FAILED].append(_digest_of_row(row))
            good += len(line)
        file.truncate(good)
        return digests

    def _merge(self) -> None:
        """Put the rows of the side file into the places of the failed rows of the same inputs."""
        places: dict[int, list[tuple[int, int]]] = {}  # where the new rows of an input lie in the side file
        with self._side.open("r+b") as side:
            self._scan(side, self._side)
            side.seek(0)
            start = 0
            for line in side:
                places.setdefault(_digest_of_row(json.loads(line)), []).append((start, len(line)))
                start += len(line)
            for found in places.values():
                found.reverse()  # the first is taken first
            partial = self._path.with_name(f".{self._path.name[:100]}.{os.getpid()}.part")
            try:
                with partial.open("xb") as merged:
                    self._file.seek(0)
                    for line in self._file:
                        row = _parsed(line)
                        new = places.get(_digest_of_row(row)) if row and row["status"] != "ok" else None
                        merged.write(_slice(side, *new.pop()) if new else line)
                    merged.flush()
                    os.fsync(merged.fileno())
                partial.replace(self._path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        self._side.unlink()
        self._file.close()
        self._file = self._locked()

    def close(self) -> None:
        """Flush, put retried rows into their places, and let go of the file.

        Raises:
            OutputError: the file cannot be written.
        """
        with writing(self._path):
            self.rows.flush()
            if self.retries is not None:
                self.retries.close()
                self._file.flush()
                self._merge()
            self._file.close()


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The row of a whole line, None for anything else."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
        return row if row["schema"] == PREDICT_SCHEMA and {"run", "input", "member", "status"} <= row.keys() else None
    except (ValueError, TypeError, KeyError):
        return None


def _slice(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)
