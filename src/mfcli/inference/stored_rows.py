"""The rows of an earlier run, to be judged: what they say of their run, their classes and the right ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from mfcli.artifact.ensure import load_labels
from mfcli.errors import NoInputsError, OutputError, UsageError
from mfcli.inputs.ground_truth import GroundTruth
from mfcli.models.registry import VARIANTS, find_variant
from mfcli.outputs.reader import StoredResults
from mfcli.results import Label, PictureResult
from mfcli.runs import RunInfo
from mfcli.settings import Settings

_MAX_CLASSES = 2**20
"""No head has more."""


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row of an earlier run.

    Attributes:
        result: with predictions, or failed.
        truth: what the row says of the right class, in the dataset's words.
        judged: what `judging.describe` returned for it then; None if it was not judged.
    """

    result: PictureResult
    truth: object
    judged: object


def iter_rows(results: StoredResults) -> Iterator[StoredRow]:
    """Yield the rows.

    Raises:
        OutputError: a row is not one of mf predict, or has no predictions.
    """
    for row, result in results.pairs():
        if result.error is None and not _has_answer(result):
            raise OutputError(
                f"{results.name} has no classes with probabilities for {result.shown_name}",
                "evaluate what mf predict wrote",
            )
        yield StoredRow(result, row.get("truth"), row.get("judged"))


def _has_answer(result: PictureResult) -> bool:
    return bool(result.predictions) and all(
        isinstance(p.class_index, int) and 0 <= p.class_index < _MAX_CLASSES and 0 <= p.prob <= 1
        for p in result.predictions
    )


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of rows before they are judged.

    Attributes:
        run: theirs.
        pictures: the name of each, for people.
        labels: the dataset's name of the class of each; empty for failed ones.
        seen: the classes that were given.
    """

    run: RunInfo
    pictures: Sequence[str]
    labels: Sequence[str]
    seen: Mapping[int, Label]

    @property
    def class_names(self) -> set[str]:
        """The dataset's names of classes."""
        return set(self.labels) - {""}

    @classmethod
    def of(cls, results: StoredResults, ground_truth: GroundTruth | None) -> "Survey":
        """Read all rows.

        Raises:
            NoInputsError: there are none.
            OutputError: they are of several runs, or not of mf predict.
            UsageError: the ground truth has no class for a picture.
        """
        runs: set[RunInfo] = set()
        pictures: list[str] = []
        labels: list[str] = []
        seen: dict[int, Label] = {}
        for row in iter_rows(results):
            runs.add(row.result.run)
            pictures.append(row.result.shown_name)
            folder = PurePath(pictures[-1]).parent.name
            labels.append("" if row.result.error else row.truth if isinstance(row.truth, str) else folder)
            seen |= {p.class_index: Label(p.wnid, p.label) for p in row.result.predictions}
        if not runs:
            raise NoInputsError(f"{results.name} holds no rows", "name a file that mf predict wrote")
        if len(runs) > 1:
            raise OutputError(f"{results.name} holds the results of {len(runs)} runs", "evaluate one run at a time")
        if ground_truth is not None:
            labels = [label and own for label, own in zip(labels, ground_truth.label(pictures), strict=True)]
        return cls(runs.pop(), pictures, labels, seen)

    def check(self, labels: Sequence[Label]) -> Sequence[Label]:
        """Return labels that the caller gives; raise UsageError if they are too few."""
        if (last := max(self.seen, default=0)) >= len(labels):
            raise UsageError(f"{len(labels)} labels for rows with class {last}", "name every class of the head")
        return labels

    def list_given(self) -> Sequence[Label]:
        """Return the classes that were given, in places of a head."""
        return [self.seen.get(index, Label(None, f"class_{index}")) for index in range(max(self.seen, default=0) + 1)]

    def is_of(self, labels: Sequence[Label]) -> bool:
        """Return whether the classes that were given are those of a head."""
        return all(index < len(labels) and labels[index] == label for index, label in self.seen.items())

    def find_labels(self, model: str | None, settings: Settings) -> Sequence[Label] | None:
        """Return the classes of a model, or of the one that rows name; None if it is unknown.

        Raises:
            ModelError: the model is unknown.
            UsageError: the rows have other classes than the model.
        """
        if model is not None:
            labels = load_labels(find_variant(model), settings)
            if not self.is_of(labels):
                raise UsageError(
                    f"the rows have other classes than {model}", "name the model that they are of, or none"
                )
            return labels
        if self.run.model in VARIANTS and self.is_of(labels := load_labels(VARIANTS[self.run.model], settings)):
            return labels
        return None
