"""The rows of a journal by their inputs, of which digests and places are kept in memory, not names."""

import base64
import json
from array import array
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from mfcli.outputs.reader import read_lines
from mfcli.results import PREDICT_SCHEMA
from mfcli.runs import RowStatus, digest_input


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


@dataclass(frozen=True, slots=True)
class Row:
    """What a journal needs of a row.

    Attributes:
        fields: all of it.
        digest: of its input, see `digest_input`.
        is_ok: whether the picture was classified.
    """

    fields: dict[str, Any]
    digest: int
    is_ok: bool


def no_digests() -> "dict[RowStatus, array[int]]":
    """Return no digests of inputs, by status."""
    return {RowStatus.OK: array("Q"), RowStatus.FAILED: array("Q")}


def parse_row(line: bytes) -> Row | None:
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
        return Row(fields, digest_input(raw, member), fields["status"] == "ok")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # UnicodeError is a ValueError
        return None


class RetriedRows:
    """The rows of a side file, by input; only their places are kept in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[int, list[tuple[int, int]]] = {}
        start = 0
        file.seek(0)
        for line in read_lines(file):
            if row := parse_row(line):
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
