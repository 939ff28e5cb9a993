"""The values passed between packages: predictions, failures and progress.

Plain frozen dataclasses: inference/ creates them, outputs/ writes them.
"""

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from mfcli.errors import FailureCode
from mfcli.runs import RunInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray
    from PIL.Image import Image

PREDICT_SCHEMA = "mf.predict/1"

_SHOWN = 3
"""Predictions in the text form of a result."""
_HTML_ROW = (
    '<tr><td style="text-align:left">{label}</td><td style="width:10em">'
    '<div style="width:{percent:.1f}%;height:.8em;background:currentColor;opacity:.5"></div></td>'
    "<td>{percent:.1f} %</td></tr>"
)


class Output(StrEnum):
    """What a model computes on the way to the logits.

    FEATURES are pooled and normalised, as the head gets them: float32 (N, dim). MAP is what is pooled: float32
    (N, dim, H, W). DISTANCE is how far a picture is from the classes of a model of the user's own: float32 (N, 1).
    """

    FEATURES = "features"
    MAP = "map"
    DISTANCE = "distance"


class Abstention(StrEnum):
    """Why an answer should not be trusted: its probability is too low, or the picture unlike those learned from."""

    UNSURE = "unsure"
    UNFAMILIAR = "unfamiliar"


class Abstain(StrEnum):
    """Which abstentions are shown."""

    OFF = "off"
    UNSURE = "unsure"
    UNFAMILIAR = "unfamiliar"
    BOTH = "both"

    def covers(self, abstention: Abstention) -> bool:
        """Return whether an abstention is shown."""
        return self is Abstain.BOTH or self.value == abstention.value


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
class Concept:
    """A concept of WordNet over a head's classes that holds most of a picture's probability.

    Attributes:
        wnid: WordNet id; None only for a class without one that was searched for by its name.
        label: its name, the first of WordNet's.
        prob: the sum over its classes, 0 to 1.
        classes: how many of the head's classes are below it.
    """

    wnid: str | None
    label: str
    prob: float
    classes: int

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Concept":
        """Return the concept that `to_dict` wrote.

        Raises:
            ValueError, TypeError, KeyError: it did not.
        """
        return cls(fields["wnid"], str(fields["label"]), float(fields["prob"]), int(fields["classes"]))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {"wnid": self.wnid, "label": self.label, "prob": self.prob, "classes": self.classes}


@dataclass(frozen=True, slots=True)
class Query:
    """What pictures are searched for.

    Attributes:
        words: concepts or classes, see `mfcli.models.meanings`.
        min_prob: the probability from which on a picture shows one of them.
        all: whether it has to show all of them.
        invert: whether the other pictures match.
    """

    words: tuple[str, ...]
    min_prob: float = 0.5
    all: bool = False
    invert: bool = False

    def matches(self, probs: Sequence[float]) -> bool:
        """Return whether a picture with these probabilities of the words matches."""
        are_shown = [prob >= self.min_prob for prob in probs]
        return (all(are_shown) if self.all else any(are_shown)) != self.invert


@dataclass(frozen=True, slots=True)
class Match:
    """What a search says of a picture: whether it matches, and the probability of everything that was searched for."""

    matches: bool
    concepts: tuple[Concept, ...]

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Match":
        """Return the match that `to_dict` wrote.

        Raises:
            ValueError, TypeError, KeyError: it did not.
        """
        return cls(bool(fields["matches"]), tuple(map(Concept.from_dict, fields["concepts"])))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {"matches": self.matches, "concepts": [concept.to_dict() for concept in self.concepts]}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a picture has no predictions."""

    code: FailureCode
    message: str


def join_member(archive: str, member: str | None) -> str:
    """Return the argument that names a member of an archive (`photos.zip/a.jpg`), or the input where there is none."""
    return archive if member is None else f"{archive}/{member}"


def encode_features(features: "ArrayLike") -> str:
    """Return float32 (dim,) in base64."""
    import numpy as np

    return base64.b64encode(np.asarray(features, "<f4").tobytes()).decode()


def _decode_features(text: str) -> "NDArray[np.float32]":
    import numpy as np

    return np.frombuffer(base64.b64decode(text, validate=True), "<f4")


@dataclass(frozen=True, slots=True, repr=False)
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
        run: the settings that it comes from.
        concept: what the picture shows with the confidence asked for; None if nothing that says enough does.
        match: what a search says; None without one.
        kept: values of JSON from the columns or files that the run keeps; None where there are none.
        features: what the head got, float32 (dim,); None unless it was asked for.
        abstained: why the answer should not be trusted; None if it may be, or nothing is known about it.
        logits: of all classes, float32 (classes,); None unless they were asked for.
        thumbnail: a small picture in mode RGB, upright; None unless the predictor makes them.
    """

    input: str
    input_b64: str | None
    member: str | None
    width: int | None
    height: int | None
    predictions: tuple[Prediction, ...]
    error: Failure | None
    run: RunInfo
    concept: Concept | None = None
    match: Match | None = None
    kept: dict[str, Any] | None = field(default=None, hash=False)
    features: "NDArray[np.float32] | None" = field(default=None, compare=False, repr=False)
    abstained: Abstention | None = None
    logits: "NDArray[np.float32] | None" = field(default=None, compare=False, repr=False)
    thumbnail: "Image | None" = field(default=None, compare=False)

    @property
    def shown_name(self) -> str:
        """The name for people, which is an argument of `mf predict` for this picture."""
        return join_member(self.input, self.member)

    @property
    def status(self) -> str:
        """`ok` or `error`."""
        return "error" if self.error else "ok"

    @property
    def top(self) -> Prediction | None:
        """The most probable class; None if there is an error."""
        return self.predictions[0] if self.predictions else None

    @property
    def label(self) -> str | None:
        """The name of the most probable class; None if there is an error."""
        return self.top.label if self.top else None

    @property
    def prob(self) -> float | None:
        """The probability of the most probable class, 0 to 1; None if there is an error."""
        return self.top.prob if self.top else None

    def to_dict(self) -> dict[str, Any]:
        """Return the row of JSON Lines, schema mf.predict/1."""
        match = {} if self.match is None else {"match": self.match.to_dict()}
        kept = {} if self.kept is None else {"kept": self.kept}
        features = {} if self.features is None else {"features": encode_features(self.features)}
        return {
            "schema": PREDICT_SCHEMA,
            "input": self.input,
            "input_b64": self.input_b64,
            "member": self.member,
            "status": self.status,
            "model": self.run.model,
            "weights_sha256": self.run.weights_sha256,
            "run": self.run.run,
            "width": self.width,
            "height": self.height,
            "predictions": [  # not asdict, whose deep copy takes a third of the time of a small picture
                {"rank": p.rank, "class_index": p.class_index, "wnid": p.wnid, "label": p.label, "prob": p.prob}
                for p in self.predictions
            ],
            "concept": self.concept.to_dict() if self.concept else None,
            "abstained": self.abstained.value if self.abstained else None,
            **match,
            **kept,
            **features,
            "error": {"code": self.error.code.value, "message": self.error.message} if self.error else None,
        }

    @classmethod
    def from_dict(cls, row: dict[str, Any], run: RunInfo) -> "PictureResult":
        """Return the result of a row that `to_dict` made, in a run.

        Raises:
            ValueError, TypeError, KeyError: it is not such a row.
        """
        error, concept, match = row["error"], row.get("concept"), row.get("match")  # older rows have no concept
        abstained = row.get("abstained")
        result = cls(
            input=row["input"],
            input_b64=row["input_b64"],
            member=row["member"],
            width=row["width"],
            height=row["height"],
            predictions=tuple(
                Prediction(p["rank"], p["class_index"], p["wnid"], p["label"], float(p["prob"]))
                for p in row["predictions"]
            ),
            error=None if error is None else Failure(FailureCode(error["code"]), error["message"]),
            run=run,
            concept=None if concept is None else Concept.from_dict(concept),
            abstained=None if abstained is None else Abstention(abstained),
            match=None if match is None else Match.from_dict(match),
            kept=None if row.get("kept") is None else dict(row["kept"]),
            features=_decode_features(row["features"]) if "features" in row else None,
        )
        _check_types(result)
        if row["schema"] != PREDICT_SCHEMA or row["status"] != result.status:
            raise ValueError("not a row of this schema")
        return result

    def __repr__(self) -> str:
        shown = [f"{p.label!r} {p.prob:.1%}" for p in self.predictions[:_SHOWN]]
        if (more := len(self.predictions) - _SHOWN) > 0:
            shown.append(f"{more} more")
        said = f"{self.error.code}, {self.error.message}" if self.error else ", ".join(shown)
        return f"<PictureResult {self.shown_name!r}: {said}>"

    def _repr_html_(self) -> str:
        """Return a table with bars, for notebooks."""
        from html import escape

        name = escape(self.shown_name)
        if self.error:
            return f"<p><b>{name}</b>: {self.error.code}, {escape(self.error.message)}</p>"
        rows = "".join(_HTML_ROW.format(label=escape(p.label), percent=100 * p.prob) for p in self.predictions)
        return f"<table><caption>{name}, {self.width} x {self.height}</caption>{rows}</table>"


def _check_types(result: PictureResult) -> None:
    """Check the values of a result that was read.

    Raises:
        TypeError: one is of another type.
        ValueError: a probability is NaN or infinite.
    """
    run, predictions, match = result.run, result.predictions, result.match
    texts = [
        result.input,
        run.model,
        *(p.label for p in predictions),
        *([result.error.message] if result.error else []),
    ]
    optional = [result.input_b64, result.member, run.weights_sha256, run.run, *(p.wnid for p in predictions)]
    optional += [concept.wnid for concept in (result.concept, *(match.concepts if match else ())) if concept]
    numbers = [result.width or 0, result.height or 0, *(n for p in predictions for n in (p.rank, p.class_index))]
    is_row = (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(text, str | None) for text in optional)
        and all(isinstance(number, int | float) for number in numbers)
    )
    if not is_row:
        raise TypeError("a value is of another type")
    if not all(math.isfinite(p.prob) for p in predictions):
        raise ValueError("a probability is not finite")


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
        total: all pictures, those included; None where they are not counted yet.
    """

    done: int
    failed: int
    finished_before: int
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """The next of a known number of steps.

    Attributes:
        description: what is done now.
        done: steps before this one.
        total: all steps.
    """

    description: str
    done: int
    total: int


Progress = Callable[[str | Transfer | Tally | Step], None]
"""Called with a note before something slow begins, the progress of a download or a run, or the next step of a task."""
