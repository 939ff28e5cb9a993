"""What is said of a run as a whole: its settings, which its rows and files repeat, its counts, and what is finished."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The settings that determine the results of one run; None where a file of results does not say.

    Attributes:
        model: the variant's name.
        weights_sha256: digest of the checkpoint that the artifact was built from.
        run: 16 hex digits, a digest of everything that affects results; equal digests mean equal results.
        engine: the engine's name.
        precision: the data type of the computation: fp32, bf16 or fp16.
        top_k: number of predictions per picture.
        confidence: the probability that a concept holds to be named; None where none is.
        query: the words that were searched for; none without a search.
        keep: the columns of Parquet files, and the files beside pictures in tars, that its rows keep.
    """

    model: str
    weights_sha256: str | None
    run: str | None
    engine: str | None
    precision: str | None
    top_k: int
    confidence: float | None = None
    query: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Everything that shapes the answers of a run.

    Attributes:
        run: the digest of it, as in `RunInfo`.
        values: JSON values by parameter; long ones as digests.
    """

    run: str
    values: dict[str, Any]


def count(number: int, noun: str) -> str:
    """Return a number of things as text: `1 picture`, `2 pictures`."""
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts over a run.

    Attributes:
        inputs: rows, those of earlier runs included.
        ok: pictures that were classified.
        failed: the other rows.
        complete: whether the run went through all its inputs; None where a file of results does not say.
        left_out: files of folders and archives that were not taken, by suffix.
        finished_before: rows of earlier runs.
    """

    inputs: int
    ok: int
    failed: int
    complete: bool | None
    left_out: Mapping[str, int] = field(default_factory=dict)
    finished_before: int = 0

    def in_words(self, done: str = "classified") -> str:
        """Return the counts as text; `done` is what was done with pictures."""
        words = f"{count(self.inputs, 'picture')}: {self.ok} {done}" + (
            f", {self.failed} failed" if self.failed else ""
        )
        if self.complete is False:
            return f"{words}; incomplete"
        return f"nothing was left to do; {words} before" if 0 < self.inputs == self.finished_before else words


class RowStatus(Enum):
    """What a journal knows of an input."""

    NEW = "new"
    OK = "ok"
    FAILED = "failed"


def digest_input(name: bytes, member: str | None) -> int:
    """Return 64 bits that stand for an input: the exact bytes of its name, and the member of an archive."""
    import hashlib

    text = name if member is None else name + b"\0" + member.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
