"""What tells one run's answers from another's: a digest, and every setting that shapes them."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from mfcli.artifact.file import FORMAT_VERSION, Artifact
from mfcli.files import sha256_of_json
from mfcli.inference.engines.base import EngineName, Precision
from mfcli.inputs.codecs import DecodeMode
from mfcli.results import PREDICT_SCHEMA, Abstain, Label, Query
from mfcli.runs import RunSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFingerprint:
    """Everything that shapes the answers of a run; equal fingerprints give equal answers."""

    artifact: Artifact
    labels: tuple[Label, ...]
    engine: EngineName
    precision: Precision
    top_k: int
    exif: bool
    decode: DecodeMode
    column: str | None
    keep: tuple[str, ...]
    confidence: float | None
    query: Query | None
    abstention: tuple[Abstain, float] | None
    features: bool

    @property
    def run(self) -> str:
        """16 hex digits over all of it."""
        labels = [dataclasses.astuple(label) for label in self.labels]
        return sha256_of_json(self._fields() | {"labels": labels})[:16]

    @property
    def settings(self) -> RunSettings:
        """The run with all of it by parameter, small enough to be kept beside the results; the labels as a digest."""
        labels = sha256_of_json([dataclasses.astuple(label) for label in self.labels])[:16]
        values = self._fields() | {"labels": labels, "decode": self.decode}
        return RunSettings(self.run, json.loads(json.dumps(values)))  # as it is read back

    def _fields(self) -> dict[str, Any]:
        return {
            "schema": PREDICT_SCHEMA,
            "format_version": FORMAT_VERSION,
            "model": self.artifact.variant,
            "artifact": self.artifact.key,
            "weights_sha256": self.artifact.weights_sha256,
            "preprocess": dataclasses.asdict(self.artifact.plan),
            "engine": self.engine,
            "precision": self.precision,
            "top_k": self.top_k,
            "exif": self.exif,
            "confidence": self.confidence,
            **({} if self.decode is DecodeMode.EXACT else {"decode": self.decode}),  # new: exact runs keep their digest
            **({} if self.column is None else {"column": self.column}),
            **({"keep": ",".join(self.keep)} if self.keep else {}),
            **({} if self.query is None else {"query": dataclasses.asdict(self.query)}),
            **({} if self.abstention is None else {"abstention": self.abstention}),
            **({"features": True} if self.features else {}),
        }
