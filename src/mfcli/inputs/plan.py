"""A plan: the names of the pictures of a big job, listed once and divided into shards, for any number of machines.

A folder with `shard-00000.jsonl` and so on, and `plan.json`, which is written last: without it, a folder is not a plan.
A line of a shard has a name as rows of results have it, and the state of the file or archive when it was listed.
"""

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any

from mfcli.errors import FailureCode, NoInputsError, OutputError, UsageError, hint_at_permissions
from mfcli.inputs.archive_sources import iter_named_sources
from mfcli.inputs.selection import OFFLINE, Selection
from mfcli.inputs.source import Source
from mfcli.inputs.walk import read_state
from mfcli.results import Progress, Tally
from mfcli.store_paths import AnyPath, find_path, list_files, open_atomically, write_atomically
from mfcli.store_urls import is_store_url

PLAN_SCHEMA = "mf.plan/1"
DEFAULT_SHARD_SIZE = 10_000
_MANIFEST = "plan.json"
_UNFINISHED = ".unfinished"
_STEP = 1000
"""Names between two calls of the progress."""

_NO_ANSWER = frozenset({FailureCode.NETWORK, FailureCode.TIMEOUT, FailureCode.PERMISSION})
_BAD_ROW = (ValueError, TypeError, KeyError, RecursionError)  # UnicodeError is a ValueError

Name = tuple[str, str | None]
"""Argument and member of a picture; undecodable bytes are surrogate escapes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the manifest says.

    Attributes:
        folder: of the plan.
        inputs: how many pictures it names.
        shard_size: names in each shard but the last.
        sha256: digests of the shards.
    """

    folder: AnyPath
    inputs: int
    shard_size: int
    sha256: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over the shards' digests: equal for plans of the same names and states."""
        return hashlib.sha256("\n".join(self.sha256).encode()).hexdigest()

    @classmethod
    def read(cls, folder: AnyPath) -> "Plan":
        """Read a manifest.

        Raises:
            NoInputsError: the folder has none, or a damaged one, or cannot be read.
        """
        folder = find_path(folder)
        try:
            fields = json.loads((folder / _MANIFEST).read_bytes())
            if fields["schema"] != PLAN_SCHEMA:
                raise ValueError(fields["schema"])
            plan = cls(folder, int(fields["inputs"]), int(fields["shard_size"]), tuple(map(str, fields["sha256"])))
            if plan.shard_size < 1 or len(plan.sha256) != -(-plan.inputs // plan.shard_size):
                raise ValueError(plan.inputs)
        except (FileNotFoundError, NotADirectoryError, OverflowError, *_BAD_ROW) as error:
            raise NoInputsError(f"{folder} is not a complete plan", f"mf plan INPUT... output={folder}") from error
        except OSError as error:
            raise NoInputsError(f"cannot read {folder}: {error.strerror}", hint_at_permissions(error)) from error
        return plan

    def count(self, shards: Iterable[int]) -> int:
        """Return how many names are in some shards."""
        return sum(min(self.shard_size, self.inputs - shard * self.shard_size) for shard in shards)

    def names(self, shard: int) -> Iterator[Name]:
        """Yield the names in a shard, once its digest has been checked.

        Raises:
            NoInputsError: it is missing, or has changed since it was planned.
        """
        return map(parse_name, self._rows(shard))

    def _rows(self, shard: int) -> Iterator[dict[str, Any]]:
        path = _shard_path(self.folder, shard)
        try:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != self.sha256[shard]:
                    raise NoInputsError(f"{path} has changed since it was planned", "plan again, into another folder")
                file.seek(0)
                yield from map(_parse_row, file)
        except FileNotFoundError as error:
            raise NoInputsError(f"cannot read {path}: {error.strerror}", "plan again, into another folder") from error
        except OSError as error:
            raise NoInputsError(f"cannot read {path}: {error.strerror}", hint_at_permissions(error)) from error
        except _BAD_ROW as error:
            raise NoInputsError(f"{path} is damaged", "plan again, into another folder") from error

    def sources(self, shard: int, selection: Selection, changes: "Changes | None" = None) -> Iterator[Source]:
        """Yield the pictures in a shard, one for each name, whatever has become of its file; see `names`.

        Args:
            shard: its number.
            selection: the columns, what is kept, and the limits; names are not filtered.
            changes: counts what has changed since it was planned.
        """
        rows = self._rows(shard)
        names = map(parse_name, rows) if changes is None else map(changes.check, rows)
        return iter_named_sources(names, selection)


@dataclass(slots=True)
class Changes:
    """Counts pictures whose file, or archive, is not as it was when it was planned; missing files are not counted."""

    count: int = 0

    def check(self, row: dict[str, Any]) -> Name:
        """Compare a row of a plan with its file, and return its name."""
        name = parse_name(row)
        state = read_state(name[0]) if "size_bytes" in row else None
        self.count += state is not None and any(row.get(key) != value for key, value in asdict(state).items())
        return name


def _parse_row(line: bytes) -> dict[str, Any]:
    """Return a row with a name that `parse_name` returns.

    Raises:
        ValueError, TypeError, KeyError or RecursionError: it is damaged.
    """
    row: dict[str, Any] = json.loads(line)
    name, member = parse_name(row)
    if not isinstance(name, str) or not isinstance(member, str | None):
        raise TypeError(name)
    return row


def parse_name(row: dict[str, Any]) -> Name:
    """Return the exact name in a row."""
    exact = row["input_b64"]
    return row["input"] if exact is None else os.fsdecode(base64.b64decode(exact)), row["member"]


def make_plan(sources: Iterable[Source], folder: AnyPath, shard_size: int, progress: Progress) -> Plan:
    """Write a plan, in memory that does not depend on the number of pictures.

    Args:
        sources: the pictures, which are not opened.
        folder: is created where it is missing. Files that an interrupted call has seen are not looked at again.
        shard_size: names in a shard.
        progress: told how many names there are so far.

    Raises:
        NoInputsError: a store does not list all of its pictures.
        OutputError: the folder is a plan already, has other files, or cannot be written.
        UsageError: a picture is on standard input.
    """
    folder = find_path(folder)
    try:
        _prepare(folder)
        digests: list[str] = []
        inputs, rest = 0, iter(sources)
        for first in rest:
            path = _shard_path(folder, len(digests))
            with open_atomically(path) as file:
                digest = hashlib.sha256()
                for line in _make_lines(chain([first], islice(rest, shard_size - 1)), path):
                    file.write(line)
                    digest.update(line)
                    inputs += 1
                    if inputs % _STEP == 0:
                        progress(Tally(inputs, 0, 0))
            digests.append(digest.hexdigest())
        written = {_shard_path(folder, shard) for shard in range(len(digests))}
        for left in set(list_files(folder, "shard-*.jsonl")) - written:
            left.unlink()
        plan = Plan(folder, inputs, shard_size, tuple(digests))
        manifest = {
            "schema": PLAN_SCHEMA,
            "digest": plan.digest,
            "inputs": inputs,
            "shard_size": shard_size,
            "sha256": digests,
        }
        write_atomically(folder / _MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")
        (folder / _UNFINISHED).unlink()
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}", "name another: output=FOLDER") from error
    return plan


def _prepare(folder: AnyPath) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _UNFINISHED).exists() and any(folder.iterdir()):
        what = "is a plan already" if (folder / _MANIFEST).exists() else "is not empty"
        raise OutputError(f"{folder} {what}", "name another: output=FOLDER")
    (folder / _UNFINISHED).touch()
    for left in list_files(folder, ".shard-*"):  # by an interrupted call
        left.unlink()


def _make_lines(sources: Iterable[Source], path: AnyPath) -> Iterator[bytes]:
    """Yield the lines of a shard; the states are those at `path`, of an interrupted call, as far as its names agree."""
    left = _read_left(path)
    for source in sources:
        if source.is_stdin:
            raise UsageError("a picture on standard input cannot be planned: it is not there later", "name a file")
        _check_listed(source)
        row = {"input": source.input, "input_b64": source.input_b64, "member": source.member}
        known = next(left, None)
        if source.state is None and isinstance(known, dict) and row.items() <= known.items():
            row = known
        else:
            left = iter(())
            if state := source.state or read_state(source.argument):
                row |= {name: value for name, value in asdict(state).items() if value is not None}
        yield json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def _check_listed(source: Source) -> None:
    """Check that this is not where a store has stopped to answer: the plan would lack what it has not listed.

    Raises:
        NoInputsError: it is.
    """
    failure = source.failure
    if failure not in (None, OFFLINE) and failure.code in _NO_ANSWER and is_store_url(source.argument):
        raise NoInputsError(f"cannot list {source.argument}: {failure.message}", "the same command again")


def _read_left(path: AnyPath) -> Iterator[Any]:
    with contextlib.suppress(FileNotFoundError, *_BAD_ROW), path.open("rb") as file:
        yield from map(json.loads, file)


def _shard_path(folder: AnyPath, shard: int) -> AnyPath:
    return folder / f"shard-{shard:05}.jsonl"


def select_shards(count: int, *, shard: str | None = None, shards: str | None = None) -> list[int]:
    """Return the shards that are chosen, in order.

    Args:
        count: how many there are; they are numbered from 0.
        shard: `I/N`, each N-th from I on; I is less than N.
        shards: numbers and ranges, `3,7-9`.

    Raises:
        UsageError: both are given, one is not of this form, or names a shard that does not exist.
    """
    if shard is not None and shards is not None:
        raise UsageError(f"shard={shard} and shards={shards} exclude each other", "leave out one of them")
    known = f"the shards 0 to {count - 1}"
    if shard is not None:
        try:
            first, step = map(int, shard.split("/"))
        except ValueError:
            raise UsageError(f"shard={shard} is not I/N: every N-th shard, from I on", "shard=0/8") from None
        if 0 <= first < step:
            return list(range(first, count, step))
        hint = f"shard=0/{step} is the first of {step}, shard={step - 1}/{step} the last" if step > 0 else "shard=0/8"
        raise UsageError(f"shard={shard} chooses none of {known}", hint)
    if shards is None:
        return list(range(count))
    with contextlib.suppress(ValueError):
        ends = [tuple(map(int, part.split("-"))) for part in shards.split(",")]
        if all(len(end) <= 2 and end[0] <= end[-1] < count for end in ends):
            return sorted({number for end in ends for number in range(end[0], end[-1] + 1)})
    raise UsageError(f"shards={shards} chooses none of {known}", "shards=3,7-9")


def format_shards(numbers: Iterable[int]) -> str:
    """Return numbers in order as `select_shards` reads them: `3,7-9`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
