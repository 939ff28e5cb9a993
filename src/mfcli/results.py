"""The values passed between packages: predictions, failures, counts and progress.

Plain frozen dataclasses: inference/ creates them, outputs/ writes them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mfcli.errors import FailureCode

PREDICT_SCHEMA = "mf.predict/1"


@dataclass(frozen=True, slots=True)
class Label:
    """One class of a model's head.

    Attributes:
        wnid: the WordNet id, comparable across models; None for classes without one.
        name: the human-readable name.
    """

    wnid: str | None
    name: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """One of the top-k predictions for a picture.

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


def join_member(archive: str, member: str | None) -> str:
    """Return the argument that names a member of an archive (`photos.zip/a.jpg`), or the input where there is none."""
    return archive if member is None else f"{archive}/{member}"


@dataclass(frozen=True, slots=True)
class PictureResult:
    """The result of one picture: predictions or an error.

    Attributes:
        input: the input as given, with U+FFFD for bytes that are not UTF-8.
        input_b64: the exact bytes of such a name in base64, else None.
        member: the member of an archive, else None.
        width: pixels of the upright picture, None if it could not be opened.
        height: pixels of the upright picture, None if it could not be opened.
        predictions: best first; empty if there is an error.
        error: why there are no predictions; None if the picture was classified.
    """

    input: str
    input_b64: str | None
    member: str | None
    width: int | None
    height: int | None
    predictions: tuple[Prediction, ...]
    error: Failure | None

    @property
    def shown_name(self) -> str:
        """The name for people, which is an argument of `mf predict` for this picture."""
        return join_member(self.input, self.member)

    @property
    def status(self) -> str:
        """`ok` or `error`."""
        return "error" if self.error else "ok"


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The settings that determine the results of one run.

    Attributes:
        model: the variant's name.
        weights_sha256: digest of the checkpoint that the artifact was built from.
        run: 16 hex digits, a digest of everything that affects results; equal digests mean equal results.
        engine: the engine's name.
        precision: the data type of the computation: fp32, bf16 or fp16.
        top_k: number of predictions per picture.
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
        """Return the counts as text."""
        pictures = "1 picture" if self.inputs == 1 else f"{self.inputs} pictures"
        return f"{pictures}: {self.ok} classified" + (f", {self.failed} failed" if self.failed else "")


@dataclass(frozen=True, slots=True)
class Transfer:
    """The progress of a download.

    Attributes:
        name: the file that is downloaded.
        done_bytes: bytes received so far.
        total_bytes: its size, None if unknown.
    """

    name: str
    done_bytes: int
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class Tally:
    """The progress of a run.

    Attributes:
        done: pictures finished in this run, including failures.
        failed: how many of them failed.
        finished_before: pictures that an earlier run had finished.
    """

    done: int
    failed: int
    finished_before: int


Progress = Callable[[str | Transfer | Tally], None]
"""Called with a note before something slow begins, with the progress of a download, or with that of a run."""
