"""The values that cross rooms: what was asked, what was answered, what failed.

Plain frozen dataclasses; formats/ turns them into bytes, predictor.py makes them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mfcli.errors import FailureCode

PREDICT_SCHEMA = "mf.predict/1"


@dataclass(frozen=True, slots=True)
class Label:
    """One class of a head.

    Attributes:
        wnid: the WordNet id, comparable across models; None for a head whose classes have none.
        name: the human-readable name.
    """

    wnid: str | None
    name: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """One of the top-k answers for a picture.

    Attributes:
        rank: 1 for the most probable class.
        class_index: index in the model's own head.
        wnid: WordNet id or None.
        label: the class name.
        prob: softmax probability, 0 to 1.
    """

    rank: int
    class_index: int
    wnid: str | None
    label: str
    prob: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a picture has no predictions."""

    code: FailureCode
    message: str


@dataclass(frozen=True, slots=True)
class PictureResult:
    """The row of one input, in input order; it has either predictions or an error.

    Attributes:
        input: the input as given; bytes that are not UTF-8 are U+FFFD here.
        input_b64: the exact bytes of such a name in base64, else None.
        member: the member of an archive, else None.
        width: pixels of the upright picture, None when it could not be opened.
        height: pixels of the upright picture, None when it could not be opened.
        predictions: best first; empty when there is an error.
        error: None when the picture was classified.
    """

    input: str
    input_b64: str | None
    member: str | None
    width: int | None
    height: int | None
    predictions: tuple[Prediction, ...]
    error: Failure | None

    @property
    def status(self) -> str:
        """`ok` or `error`."""
        return "error" if self.error else "ok"


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What shaped the answers of one run.

    Attributes:
        model: the variant's name.
        weights_sha256: digest of the checkpoint the artifact was made from.
        run: 16 hex digits over everything that shapes an answer; equal runs give equal answers.
        engine: the engine's name.
        precision: the arithmetic, "fp32".
        top_k: number of predictions a picture.
    """

    model: str
    weights_sha256: str
    run: str
    engine: str
    precision: str
    top_k: int


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Everything that shapes the answers of a run.

    Attributes:
        run: the digest of it, as in `RunInfo`.
        values: JSON values by parameter; long ones as digests.
    """

    run: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts over a run."""

    inputs: int
    ok: int
    failed: int

    def in_words(self) -> str:
        """Return the counts as a line for people."""
        pictures = "1 picture" if self.inputs == 1 else f"{self.inputs} pictures"
        return f"{pictures}: {self.ok} classified" + (f", {self.failed} failed" if self.failed else "")


@dataclass(frozen=True, slots=True)
class Transfer:
    """A download under way.

    Attributes:
        name: what is fetched.
        done_bytes: how much of it is here.
        total_bytes: its size, None where it is not known.
    """

    name: str
    done_bytes: int
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class Tally:
    """A run under way.

    Attributes:
        done: pictures answered in this run, failures among them.
        failed: how many of them failed.
        finished_before: pictures that an earlier run had finished.
    """

    done: int
    failed: int
    finished_before: int


Progress = Callable[[str | Transfer | Tally], None]
"""Told what takes long: in a few words before it begins, how far a download is, and how many pictures are done."""
