"""The results of a plan: a folder with a part for each shard, written beside its name and renamed once it is whole.

A part that exists is done: nothing else is needed to go on, on any machine. `_job.json` says which plan and which run
the parts belong to, `_part-00042.json` the counts of a part, and `_SUCCESS` that all parts have been checked.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from mfcli.errors import EngineError, OutputError, hint_at_permissions
from mfcli.outputs.files import open_text, translate_write_errors
from mfcli.outputs.journal import describe_difference
from mfcli.outputs.reader import StoredResults
from mfcli.outputs.writer import Writer
from mfcli.runs import RunSettings, Summary
from mfcli.store_paths import (
    AnyPath,
    create,
    find_path,
    is_writable,
    list_files,
    map_files,
    open_atomically,
    write_atomically,
)

_JOB, _SUCCESS = "_job.json", "_SUCCESS"
_MAX_ATTEMPTS = 10
_REQUESTS = 64
"""Requests for counts that are under way at once."""
_ANOTHER = "name another folder: output=FOLDER"
_OR_ANOTHER = "or another folder: output=FOLDER"


@dataclass(frozen=True, slots=True)
class PartCounts:
    """The counts of a part, and what it took to make it.

    Attributes:
        inputs: rows.
        ok: pictures that were classified.
        failed: the other rows.
        seconds: how long it took.
        changed: pictures whose file had changed since it was planned.
    """

    inputs: int
    ok: int
    failed: int
    seconds: float
    changed: int = 0


class PartFolder:
    """The folder of the parts of one plan and one run.

    Attributes:
        folder: the folder.
        run: whose rows it holds; None where it was not asked.
    """

    def __init__(self, folder: AnyPath, format: str, run: str | None = None) -> None:
        """Name a folder.

        Args:
            folder: is created by `claim`.
            format: of the parts, which is their suffix.
            run: whose rows it holds.
        """
        self.folder, self._format, self.run = find_path(folder), format, run
        self._owner = os.urandom(4).hex()  # copies in other processes have it too

    @classmethod
    def find(cls, folder: AnyPath, plan_digest: str) -> "PartFolder":
        """Return a folder that was claimed for a plan.

        Raises:
            OutputError: it was not, or for another plan.
        """
        folder = find_path(folder)
        job = _read_json(folder / _JOB)
        if not {"plan", "format", "run"} <= job.keys():
            raise OutputError(f"{folder} has no parts", f"mf predict plan=PLAN output={folder}")
        if job.get("plan") != plan_digest:
            raise OutputError(f"{folder} has parts of another plan", _ANOTHER)
        return cls(folder, str(job["format"]), str(job["run"]))

    def prepare(self) -> None:
        """Create the folder, before any work.

        Raises:
            OutputError: it cannot be created or written.
        """
        with translate_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            may_write = is_writable(self.folder)
        if not may_write:
            raise OutputError(f"{self.folder} may not be written", _ANOTHER)

    def claim(self, plan_digest: str, settings: RunSettings) -> None:
        """Make it the folder of a plan and a run; the first process to do so decides of which.

        Raises:
            OutputError: it is that of another, has other files, or cannot be written.
        """
        job = {"plan": plan_digest, "format": self._format, "run": settings.run, "settings": settings.values}
        path = self.folder / _JOB
        with translate_write_errors(self.folder):
            if not path.exists():
                has_files = any(not entry.name.startswith(("_", ".")) for entry in self.folder.iterdir())
                if has_files and not path.exists():  # another process may have claimed it and made a part meanwhile
                    raise OutputError(f"{self.folder} has other files", _ANOTHER)
                create(path, json.dumps(job).encode())
        found = _read_json(path)
        if found.get("plan") != plan_digest:
            raise OutputError(f"{self.folder} has parts of another plan", _ANOTHER)
        if (format := found.get("format")) != self._format:
            raise OutputError(f"{self.folder} has parts in {format}", f"format={format}, {_OR_ANOTHER}")
        if found.get("run") != settings.run:
            theirs = found.get("settings")
            difference = describe_difference(theirs if isinstance(theirs, dict) else {}, settings.values)
            raise OutputError(
                f"{self.folder} has parts of another run: {difference}",
                f"use the settings that it was begun with, {_OR_ANOTHER}",
            )

    def path(self, shard: int) -> AnyPath:
        """Return the path of a part."""
        return self.folder / f"part-{shard:05}.{self._format}"

    def list_done(self, shards: int) -> set[int]:
        """Return which of so many parts exist, from one listing.

        Raises:
            OutputError: the folder cannot be listed.
        """
        with translate_write_errors(self.folder):
            found = set(self.folder.iterdir())
        return {shard for shard in range(shards) if self.path(shard) in found}

    def is_done(self, shard: int) -> bool:
        """Return whether a part exists, and so is complete."""
        return self.path(shard).is_file()

    @contextlib.contextmanager
    def open(self, shard: int, open_writer: Callable[[TextIO], Writer]) -> Iterator[Writer]:
        """Open a part; it appears at the end, if there was no exception.

        Raises:
            OutputError: it cannot be written.
        """
        with translate_write_errors(self.path(shard)), open_atomically(self.path(shard), self._owner) as file:
            stream = open_text(file)
            yield open_writer(stream)
            stream.detach()

    def check_attempts(self, shard: int) -> None:
        """Check that a part has not ended one process after another that opened it with this object or a copy.

        Raises:
            EngineError: it has.
        """
        if len(self._list_unfinished(self.path(shard).name)) >= _MAX_ATTEMPTS:
            raise EngineError(
                f"{_MAX_ATTEMPTS} processes were killed while they made {self.path(shard)}",
                "perhaps memory runs out: workers=1, or more memory for each process",
            )

    def drop_unfinished(self) -> None:
        """Delete what processes that were killed have left of parts that they opened with this object or a copy."""
        for left in self._list_unfinished("part-*"):
            with contextlib.suppress(OSError):
                left.unlink()

    def _list_unfinished(self, pattern: str) -> list[AnyPath]:
        """Return files that were opened with this object or a copy; stores have none."""
        return list_files(self.folder, f".{pattern}.{self._owner}-*") if isinstance(self.folder, Path) else []

    def write_counts(self, shard: int, summary: Summary, seconds: float, changed: int = 0) -> None:
        """Leave the counts of a part; without them, `read_counts` counts its rows."""
        counts = PartCounts(summary.inputs, summary.ok, summary.failed, round(seconds, 3), changed)
        with translate_write_errors(self.folder):
            write_atomically(self._counts_path(shard), json.dumps(asdict(counts)).encode())

    def read_counts(self, shards: Iterable[int]) -> list[PartCounts]:
        """Return the counts of parts.

        Raises:
            OutputError: one cannot be read.
        """
        return list(map_files(self.folder, self._read_counts, shards, at_once=_REQUESTS))

    def _read_counts(self, shard: int) -> PartCounts:
        with contextlib.suppress(TypeError):
            return PartCounts(**_read_json(self._counts_path(shard)))
        failed = [row["error"] is not None for row in self.rows(shard)]
        return PartCounts(len(failed), len(failed) - sum(failed), sum(failed), 0.0)

    def rows(self, shard: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of a part.

        Raises:
            OutputError: it cannot be read, or has anything but rows.
        """
        return self._read(shard, StoredResults.rows)

    def names(self, shard: int) -> Iterator[dict[str, Any]]:
        """Yield `input`, `input_b64`, `member` and `run` of the rows of a part, in a fraction of the time of `rows`.

        Raises:
            OutputError: it cannot be read, or has anything but rows.
        """
        return self._read(shard, StoredResults.names)

    def _read(
        self, shard: int, iterate: Callable[[StoredResults], Iterator[dict[str, Any]]]
    ) -> Iterator[dict[str, Any]]:
        path = self.path(shard)
        try:
            with path.open("rb") as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(0)
                    yield from iterate(StoredResults(file, str(path)))
        except OSError as error:
            raise OutputError(f"cannot read {path}: {error.strerror}", hint_at_permissions(error)) from error

    def finish(self, totals: dict[str, Any]) -> None:
        """Leave the totals and `_SUCCESS`, and delete what killed processes have left.

        Raises:
            OutputError: the folder cannot be written.
        """
        with translate_write_errors(self.folder):
            for pattern in (".part-*", "._part-*", f".{_JOB}.*"):
                for left in list_files(self.folder, pattern):
                    left.unlink(missing_ok=True)
            write_atomically(self.folder / "_summary.json", json.dumps(totals, indent=1).encode() + b"\n")
            write_atomically(self.folder / _SUCCESS, b"")

    def _counts_path(self, shard: int) -> AnyPath:
        return self.folder / f"_part-{shard:05}.json"


def _read_json(path: AnyPath) -> dict[str, Any]:
    """Return the object in a file; an empty one where it is missing or damaged.

    Raises:
        OutputError: it cannot be read.
    """
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}", hint_at_permissions(error)) from error
    return found if isinstance(found, dict) else {}
