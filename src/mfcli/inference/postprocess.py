"""From logits to what a result says: the top-k with labels, the concept over them, the match, and the abstention."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mfcli.artifact.file import Artifact
from mfcli.errors import UsageError
from mfcli.hub.bundled import is_bundled
from mfcli.results import Abstain, Abstention, Concept, Label, Match, Prediction, Query
from mfcli.settings import DEFAULT_CONFIDENCE, DEFAULT_MAX_ERROR, DEFAULT_TOP_K, MIN_CONFIDENCE

if TYPE_CHECKING:
    from mfcli.models.abstention import Thresholds
    from mfcli.models.concepts import HeadConcepts
    from mfcli.models.meanings import Target

TopK = int | Literal["all"] | None


@dataclass(frozen=True, slots=True)
class PostprocessOptions:
    """What results say of the logits.

    Attributes:
        top_k: predictions per picture, or `all`; None for five, or for all where there are fewer classes.
        confidence: probability that a concept holds to be named, 0.5 to 1; None to name none.
        query: what is searched for; results then have a match.
        abstain: which abstentions are shown; None for both of a model of mf train, and of the bundled one if there is a
            `max_error`.
        max_error: the share of wrong answers among those that are not unsure, all of which are unsure if the model
            cannot promise it; None for 0.1, or for none that is unsure.
        logits: whether results have the logits of all classes.

    Raises:
        UsageError: one of them fits no model.
    """

    top_k: TopK = None
    confidence: float | None = DEFAULT_CONFIDENCE
    query: Query | None = None
    abstain: Abstain | None = None
    max_error: float | None = None
    logits: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.top_k, int) and self.top_k < 1:
            raise UsageError(f"top_k={self.top_k} is less than 1", "top_k=1")
        if self.confidence is not None and not MIN_CONFIDENCE <= self.confidence <= 1:
            raise UsageError(
                f"confidence={self.confidence:g} is not between {MIN_CONFIDENCE} and 1",
                f"confidence={DEFAULT_CONFIDENCE}",
            )
        if self.max_error is not None and not (isinstance(self.max_error, int | float) and 0 < self.max_error < 1):
            raise UsageError(f"max_error={self.max_error!r} is not between 0 and 1", f"max_error={DEFAULT_MAX_ERROR:g}")
        if self.query is not None and not 0 < self.query.min_prob <= 1:
            raise UsageError(f"min_prob={self.query.min_prob:g} is not more than 0 and at most 1", "min_prob=0.5")

    def choose_abstentions(self, artifact: Artifact) -> tuple[Abstain, float]:
        """Return which abstentions of a model are shown, and its max_error.

        Raises:
            UsageError: some are asked for that the model does not know.
        """
        thresholds, abstain = artifact.thresholds, self.abstain
        if abstain is None:
            is_wanted = self.max_error is not None or (thresholds is not None and not is_bundled(artifact.path))
            abstain = Abstain.BOTH if is_wanted else Abstain.OFF
            if abstain is Abstain.BOTH and thresholds is not None and not self._can_promise(thresholds):
                abstain = Abstain.UNFAMILIAR if thresholds.distance is not None else Abstain.OFF
        if abstain is not Abstain.OFF and thresholds is None:
            raise UsageError(
                f"{artifact.variant} does not know when it is wrong",
                "abstain=off; only the bundled model and those of mf train know",
            )
        if abstain is Abstain.UNFAMILIAR and (thresholds is None or thresholds.distance is None):
            raise UsageError(f"{artifact.variant} does not know which pictures are unfamiliar", "abstain=unsure")
        return abstain, self.max_error or DEFAULT_MAX_ERROR

    def _can_promise(self, thresholds: "Thresholds") -> bool:
        return self.max_error is not None or thresholds.least_error <= DEFAULT_MAX_ERROR

    def count_predictions(self, artifact: Artifact) -> int:
        """Return how many predictions a picture gets from a model.

        Raises:
            UsageError: top_k is more than there are classes.
        """
        classes = len(artifact.labels)
        if self.top_k is None:
            return min(DEFAULT_TOP_K, classes)
        if self.top_k == "all":
            return classes
        if self.top_k > classes:
            raise UsageError(
                f"top_k={self.top_k} is not between 1 and the {classes} classes of {artifact.variant}",
                f"top_k={classes}",
            )
        return self.top_k


class Postprocessor:
    """Reads the logits of one model.

    Attributes:
        labels: the names in use, one per class in head order.
        top_k: predictions per picture.
        options: what it was made with.
        targets: what the query's words mean to this model.
        abstentions: which are shown, and max_error; None if none is.
        doubtful_below: the probability below which an answer is unsure at the default max_error, shown or not.
    """

    def __init__(self, artifact: Artifact, labels: tuple[Label, ...] | None, options: PostprocessOptions) -> None:
        """Bind the options to a model.

        Args:
            artifact: the model.
            labels: names to use instead of the artifact's.
            options: what results say.

        Raises:
            AmbiguousWordError: a word of the query has several meanings.
            UsageError: the query, top_k, or the number of labels, does not fit the head, or the model cannot abstain.
        """
        self.top_k = options.count_predictions(artifact)
        classes = len(artifact.labels)
        if labels is not None and len(labels) != classes:
            raise UsageError(
                f"{len(labels)} label{'s' * (len(labels) != 1)} for the {classes} classes of {artifact.variant}",
                f"give {classes} names, in the head's order",
            )
        self.labels = artifact.labels if labels is None else labels
        self.options = options
        self.targets = () if options.query is None else self._resolve(options.query)
        thresholds, (abstain, max_error) = artifact.thresholds, options.choose_abstentions(artifact)
        self.abstentions = None if abstain is Abstain.OFF else (abstain, max_error)
        self.doubtful_below = math.inf if thresholds is None else thresholds.find_prob(DEFAULT_MAX_ERROR)
        self._max_distance, self._min_prob = None, 0.0
        if thresholds is not None and abstain.covers(Abstention.UNFAMILIAR):
            self._max_distance = thresholds.distance
        if thresholds is not None and abstain.covers(Abstention.UNSURE):
            self._min_prob = thresholds.find_prob(max_error)

    def judge(self, prob: float, distance: float | None) -> Abstention | None:
        """Return why an answer should not be trusted, as far as the model knows and the caller asked.

        Args:
            prob: the largest probability.
            distance: how far the picture is from the classes; None if that is not computed.
        """
        if distance is not None and self._max_distance is not None and distance > self._max_distance:
            return Abstention.UNFAMILIAR
        return Abstention.UNSURE if prob < self._min_prob else None

    def rank(self, logits: NDArray[np.float32]) -> tuple[tuple[Prediction, ...], Concept | None]:
        """Rank float32 logits (classes,), equal ones in head order, and name the concept over them."""
        probs = _softmax(logits)
        order = np.argsort(-logits, kind="stable")[: self.top_k]
        predictions = tuple(
            Prediction(rank, int(index), self.labels[index].wnid, self.labels[index].name, float(probs[index]))
            for rank, index in enumerate(order, start=1)
        )
        concept = None
        if self.options.confidence is not None and self._concepts is not None:
            concept = self._concepts.name(probs, self.options.confidence)
        return predictions, concept

    def search(self, logits: NDArray[np.float32]) -> Match | None:
        """Return what the query says of float32 logits (classes,); None without one."""
        if self.options.query is None:
            return None
        probs = _softmax(logits)
        sums = [min(float(np.add.reduceat(probs[t.members], [0])[0]), 1.0) for t in self.targets]  # as concepts are
        concepts = (Concept(t.wnid, t.label, p, len(t.members)) for t, p in zip(self.targets, sums, strict=True))
        return Match(self.options.query.matches(sums), tuple(concepts))

    def _resolve(self, query: Query) -> "tuple[Target, ...]":
        from mfcli.models.concepts import HeadConcepts
        from mfcli.models.meanings import resolve

        concepts = self._concepts or HeadConcepts(())
        return tuple(resolve(word, self.labels, concepts) for word in query.words)

    @cached_property
    def _concepts(self) -> "HeadConcepts | None":
        """The concepts over the classes; None, and not loaded, where no class has a WordNet id."""
        if all(label.wnid is None for label in self.labels):
            return None
        from mfcli.models.concepts import HeadConcepts

        return HeadConcepts(self.labels)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probs: NDArray[np.float64] = shifted / shifted.sum()
    return probs
