"""A JSON Lines file of results that a later run can continue, after any interruption, a kill included.

Rows are appended and flushed one by one; the file is locked, checked and repaired when it is opened. A hidden file
beside it, `.NAME.run`, holds the settings of its run, so that a run with different settings can name the differences.
"""

import contextlib
import fcntl
import json
import os
import stat
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from mfcli.errors import OutputError
from mfcli.files import write_atomically
from mfcli.outputs.files import (
    check_folder,
    make_lock_error,
    open_beside,
    open_text,
    publish_file,
    translate_write_errors,
)
from mfcli.outputs.journal_rows import DigestCounter, RetriedRows, Row, no_digests, parse_row
from mfcli.outputs.json import format_line
from mfcli.outputs.reader import StoredResults, is_torn, read_lines
from mfcli.results import PictureResult
from mfcli.runs import RowStatus, RunSettings, digest_input
from mfcli.signals import defer_signals


class Journal:
    """A JSON Lines file of one run, locked, repaired and ready to be appended to.

    Attributes:
        rows: the text stream of new rows.
        retries: the text stream of rows that replace failed ones, None where failed ones stay.
    """

    def __init__(
        self,
        path: Path,
        settings: RunSettings,
        *,
        origin: Path | None = None,
        overwrite: bool = False,
        retry_failed: bool = False,
    ) -> None:
        """Open or create the file.

        Args:
            path: the file.
            settings: the run whose rows it must hold.
            origin: a file of results, in any format that can be read; an empty journal begins with its rows.
            overwrite: whether to begin with an empty file, which happens in `begin`.
            retry_failed: whether failed inputs are to be classified again.

        Raises:
            OutputError: it holds another run or something else, is in use, or cannot be written.
        """
        check_folder(path)
        self._given_path = path
        self._path = Path(os.path.realpath(path))
        self._settings = settings
        self._settings_file = _settings_path(self._path)
        self._origin_size: int | None = None  # while it holds the rows of its origin and nothing else
        self._overwrite = overwrite
        self._side = self._path.with_name(f".{self._path.name}.retry")  # rows that are to replace failed ones
        with translate_write_errors(path):
            self._is_new = not self._path.exists()
            self._is_merged = False
            self._obsolete: set[int] = set()
            self._file = self._open_locked()
            try:
                if origin is not None and not self._size() and origin.exists():
                    self._take_over(origin)
                if not overwrite and self._side.exists():
                    self._merge()
                found = no_digests() if overwrite else self._scan(self._file, path)
                self._has_rows = any(found.values())
                self._left = {status: DigestCounter(digests) for status, digests in found.items()}
                self._file.seek(0, os.SEEK_END)
                self.rows: TextIO = open_text(self._file, line_buffering=True)
                self.retries: TextIO | None = None
                if retry_failed:
                    self.retries = open_text(self._side.open("wb"), line_buffering=True)
            except BaseException:
                if self._is_new:
                    self._delete_if_needless()
                self._file.close()
                raise

    def begin(self) -> None:
        """Get ready for the first row: empty a file that is to be overwritten, and keep this run's settings."""
        if self._overwrite:
            self._file.seek(0)
            self._file.truncate()
            self._side.unlink(missing_ok=True)
        if read_settings(self._path) != self._settings:
            with contextlib.suppress(OSError):  # without it, a later message is less exact
                write_atomically(self._settings_file, json.dumps(asdict(self._settings)).encode())

    def take_status(self, name: bytes, member: str | None) -> RowStatus:
        """Return what is known of an input; an input that is named twice needs two rows, so one is used up."""
        if not self._has_rows:
            return RowStatus.NEW
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

    def merge(self) -> bool:
        """Flush, and merge retried rows; nothing can be written afterwards. Return whether there are new rows.

        Raises:
            OutputError: the file cannot be written.
        """
        with translate_write_errors(self._given_path), defer_signals():
            if not self._is_merged:
                self.rows.flush()
                if self.retries is not None:
                    self.retries.close()
                    self._merge()
                self._is_merged = True
        return self._size() != self._origin_size

    def results(self) -> Iterator[PictureResult]:
        """Yield the results, after `merge`."""
        with self._path.open("rb") as file:
            yield from StoredResults(file, str(self._path))

    def publish(self, path: Path) -> None:
        """Rename the journal to `path`, after `merge`.

        Raises:
            OutputError: it cannot be written.
        """
        with translate_write_errors(path), defer_signals():
            publish_file(self._file, self._path, Path(os.path.realpath(path)))
            self._leave_settings(path)

    def discard(self, path: Path) -> None:
        """Delete the journal, whose rows are in `path` by now; its settings stay beside that file."""
        with translate_write_errors(path), defer_signals():
            self._leave_settings(path)
            self._path.unlink()

    def close(self) -> None:
        """Merge retried rows, and release the file; it is deleted if it holds no rows, or only those of its origin.

        Raises:
            OutputError: the file cannot be written.
        """
        with translate_write_errors(self._given_path), defer_signals():
            if not self.merge() or self._is_new:
                self._delete_if_needless()
            self._file.close()

    def _leave_settings(self, path: Path) -> None:
        with contextlib.suppress(OSError):  # as where they are written
            self._settings_file.replace(_settings_path(path))

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

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
                raise make_lock_error(self._given_path) from error
            except FileNotFoundError:
                file.close()
            except BaseException:
                file.close()
                raise

    def _take_over(self, origin: Path) -> None:
        """Begin with the rows of a file of results, which must be this run's."""
        with origin.open("rb") as file, self._rewrite() as rows:
            for row in StoredResults(file, str(origin), read_settings(origin)).rows():
                if row["run"] is None:
                    raise OutputError(
                        f"{origin} does not say which run it belongs to", "name another file: output=FILE"
                    )
                rows.write(f"{format_line(row)}\n".encode("utf-8", "replace"))
            self._scan(rows, origin)
        self._origin_size = self._size()

    def _scan(self, file: BinaryIO, path: Path) -> "dict[RowStatus, array[int]]":
        """Check every row, cut off a torn last one, and return the inputs by status.

        Nothing is changed before all rows have been checked. `path` is where they come from.
        """
        found = no_digests()
        good = 0
        file.seek(0)
        for number, line in enumerate(read_lines(file), start=1):
            row = parse_row(line)
            if row is None:
                if is_torn(line) and not file.read(1):
                    file.truncate(good)
                    break
                raise OutputError(
                    f"line {number} of {path} is not a row of mf predict", "name another file: output=FILE"
                )
            if row.fields["run"] != self._settings.run:
                raise OutputError(
                    f"{path} belongs to a different run: {self._describe_difference(row, path)}",
                    "use the settings that it was begun with, or another file: output=FILE",
                )
            found[RowStatus.OK if row.is_ok else RowStatus.FAILED].append(row.digest)
            good += len(line)
        return found

    def _describe_difference(self, row: Row, path: Path) -> str:
        """Name the settings in which the run of a row differs from this one, as far as they are known."""
        theirs = {name: row.fields.get(name) for name in ("model", "weights_sha256")}
        kept = read_settings(path)
        if kept is not None and kept.run == row.fields["run"]:
            theirs = kept.values
        return describe_difference(theirs, self._settings.values)

    def _merge(self) -> None:
        """Put retried rows into the places of the failed rows of the same inputs; see `drop_failed`.

        Every reader of the file then finds one row per input, in input order, byte for byte what an uninterrupted run
        would have written. If they were appended, other tools would count retried inputs twice.
        """
        with self._side.open("r+b") as side, self._rewrite() as merged:
            self._scan(side, self._side)
            retried = RetriedRows(side)
            self._file.seek(0)
            for line in read_lines(self._file):
                row = parse_row(line)
                replacement = retried.take(row.digest) if row and not row.is_ok else None
                if replacement is None and row and not row.is_ok and row.digest in self._obsolete:
                    replacement = b""
                if replacement not in (None, line):
                    self._origin_size = None
                merged.write(line if replacement is None else replacement)
        self._side.unlink()

    @contextlib.contextmanager
    def _rewrite(self) -> Iterator[BinaryIO]:
        """Yield an empty file that takes this one's place at the end."""
        with open_beside(self._path) as (file, publish):
            yield file
            _lock(file)  # before it is published: the name is never without a lock
            publish()
            old, self._file = self._file, _duplicate(file)
            old.close()

    def _delete_if_needless(self) -> None:
        status = os.fstat(self._file.fileno())
        with contextlib.suppress(OSError):
            if status.st_size in (0, self._origin_size) and os.path.samestat(status, self._path.stat()):
                self._path.unlink()
                self._settings_file.unlink(missing_ok=True)


_COARSE_SETTINGS = {
    "mapping": "other names of classes",
    "allowed": "other valid labels",
    "model": "model={theirs} instead of model={ours}",
    "weights_sha256": "other weights of {model}, SHA-256 {theirs}",
    "format_version": "another version of mf",
    "preprocess": "other preprocessing",
    "artifact": "another version of mf",
}
"""Settings of which the first that differs explains the rest."""


def describe_difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Name the settings of another run that differ from those of this one.

    Args:
        theirs: as many as are known, by parameter.
        ours: all of them.
    """
    for name, meaning in _COARSE_SETTINGS.items():
        if name in theirs and theirs[name] != ours.get(name):
            return meaning.format(theirs=theirs[name], ours=ours.get(name), model=ours.get("model"))
    different = [name for name, value in theirs.items() if ours.get(name) != value]
    fine = [f"{name}={theirs[name]} instead of {name}={ours.get(name)}" for name in different if name != "labels"]
    fine += ["other labels"] if "labels" in different else []
    return ", ".join(fine) or "other settings, or another version of mf"


def _settings_path(path: Path) -> Path:
    """Return the file that holds the settings of the results in `path`."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{target.name}.run")


def read_settings(path: Path) -> RunSettings | None:
    """Return the settings that are kept beside the results in `path`; None where they are missing or damaged."""
    try:
        return RunSettings(**json.loads(_settings_path(path).read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _lock(file: BinaryIO) -> None:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _duplicate(file: BinaryIO) -> BinaryIO:
    """Return a second handle of an open file, which keeps its lock when the first is closed."""
    return open(os.dup(file.fileno()), "r+b")  # noqa: PTH123
