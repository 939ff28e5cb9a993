"""Judge a model, or the results of an earlier run, by pictures whose classes are known."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfcli.errors import OutputError, UsageError
from mfcli.files import sha256_of_json
from mfcli.inference.judging import (
    FAILED,
    Evaluation,
    Judgement,
    Truth,
    describe,
    judge_result,
    judge_row,
    summarize,
)
from mfcli.inference.predictor import Predictor
from mfcli.inference.stored_rows import Survey, iter_rows
from mfcli.inputs.dataset import LabelledPicture, join_names, read_judged, spread
from mfcli.inputs.ground_truth import GroundTruth, read_real_labels
from mfcli.models.class_names import map_classes
from mfcli.models.label_files import read_labels
from mfcli.models.labels import load_imagenet_labels
from mfcli.models.registry import VARIANTS, find_variant
from mfcli.outputs.files import translate_write_errors
from mfcli.outputs.json import format_line
from mfcli.outputs.reader import StoredResults
from mfcli.outputs.result_file import ResultFile
from mfcli.outputs.training import read_learned
from mfcli.results import Label, PictureResult, Progress, Tally
from mfcli.runs import RunInfo, RunSettings, Summary
from mfcli.settings import Settings
from mfcli.signals import defer_signals


class Subset(StrEnum):
    """Classes that the answers of a head can be restricted to."""

    IN1K = "in1k"


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """What a model is judged by.

    Attributes:
        data: a folder or a CSV file, see `inputs.dataset.read_judged`; or results.
        ground_truth: the classes of pictures in one folder, see `inputs.ground_truth.GroundTruth`.
        class_map: the dataset's names of classes in the head's order, see `label_files.read_labels`.
        valid_labels: a file with the classes that can be given, one a line: WordNet ids, names or indices.
        map_to: the classes that can be given.
        real_labels: see `inputs.ground_truth.read_real_labels`.
        limit: pictures at most, spread over the classes.
        predictions: a file that gets the rows, which can be resumed.
        overwrite: whether that file may be replaced.
        resume: whether to go on with it.
        is_published: whether weights and preprocessing are the model's own, so that its published figure applies.
        batch_size: pictures per batch, None for what suits the engine.
        workers: threads that decode, None for what suits the machine.
    """

    data: Path
    ground_truth: Path | None = None
    class_map: Path | None = None
    valid_labels: Path | None = None
    map_to: Subset | None = None
    real_labels: Path | None = None
    limit: int | None = None
    predictions: Path | None = None
    overwrite: bool = False
    resume: bool = False
    is_published: bool = True
    batch_size: int | None = None
    workers: int | None = None


def evaluate(predictor: Predictor, request: EvaluateRequest, progress: Progress = lambda _: None) -> Evaluation:
    """Classify pictures whose classes are known, and return how good the answers are.

    Args:
        predictor: with logits.
        request: the pictures.
        progress: told what the names of classes mean, and the counts.

    Raises:
        EngineError: the engine fails.
        NoInputsError: there are no pictures.
        OutputError: the rows cannot be written, or are of another run.
        UsageError: the classes of the pictures are not known, or none is one of the model's.
    """
    labels = predictor.labels
    pictures = read_judged(request.data, request.ground_truth, progress=progress)
    class_map = None if request.class_map is None else read_labels(request.class_map)
    model = f"the model {predictor.run_info.model}"
    mapping = map_classes((picture.label for picture in pictures), labels, class_map, model)
    progress(mapping.in_words(labels))
    truth = Truth(labels, mapping, _select_allowed(request, labels))
    judged = [picture for picture in pictures if truth.find(picture.label) is not None]
    coverage = _describe_coverage([picture.label for picture in pictures], truth, progress)
    chosen = judged if request.limit is None else spread(judged, request.limit)
    names = [picture.source.shown_name for picture in chosen]
    truth = replace(truth, real=_read_real_labels(request, names, labels))
    _warn_of_learned(predictor.artifact.folder, names, progress)
    run = _Run(predictor, truth, request, progress)
    judgements = run.judge(chosen)
    figures = _describe_run(request, run.info) | coverage
    return summarize(figures, judgements, truth, _find_published(run.info.model, request), run.images_per_s)


def evaluate_results(
    results: StoredResults,
    request: EvaluateRequest,
    settings: Settings,
    progress: Progress = lambda _: None,
    *,
    labels: Sequence[Label] | None = None,
    model: str | None = None,
) -> Evaluation:
    """Return how good the answers of an earlier run are; nothing is computed.

    The class of a picture is that of the ground truth, else what its row says as `truth`, else its folder's name.

    Args:
        results: the file, which is read twice.
        request: what is known of the pictures.
        settings: locate the cache.
        progress: told what the names of classes mean.
        labels: the head's; None for those of the model.
        model: the name of the model; None for the name in the rows.

    Raises:
        ModelError: the model is unknown.
        NoInputsError: there are no rows.
        OutputError: the rows are of several models, none of mf predict, or have no predictions.
        UsageError: the classes of the pictures are not known, or none is one of the model's.
    """
    ground_truth = None if request.ground_truth is None else GroundTruth.read(request.ground_truth)
    survey = Survey.of(results, ground_truth)
    if results.complete is False:
        progress(f"{results.name} is of an unfinished run: the figures are of its {len(survey.labels)} rows")
    known = survey.check(labels) if labels else survey.find_labels(model, settings)
    if known is None:
        progress(f"only the classes of {survey.run.model} that were given are known; model=NAME names all of them")
    labels = known or survey.list_given()
    class_map = None if request.class_map is None else read_labels(request.class_map)
    mapping = map_classes(survey.class_names, labels, class_map)
    if known is None and mapping.outside:  # else they would be left out, and not be wrong
        raise UsageError(
            f"whether {survey.run.model} has {join_names(mapping.outside)} is unknown", "model=NAME, or labels=FILE"
        )
    if mapping.indices:
        progress(mapping.in_words(labels))
    truth = Truth(labels, mapping, real=_read_real_labels(request, survey.pictures, labels))
    coverage = _describe_coverage(survey.labels, truth, progress)
    if model is not None:
        _warn_of_learned(find_variant(model).folder, survey.pictures, progress)
    judgements = []
    for label, row in zip(survey.labels, iter_rows(results), strict=False):  # a run in progress may have added more
        if row.result.error is not None:
            judgements.append(FAILED)
        elif (target := truth.find(label)) is not None:
            judgements.append(judge_row(row.result, target, truth, row.judged))
    figures = _describe_run(request, survey.run) | coverage
    return summarize(figures, judgements, truth, _find_published(survey.run.model, request))


def _describe_run(request: EvaluateRequest, run: RunInfo) -> dict[str, Any]:
    return {
        "data": str(request.data),
        "model": run.model,
        "weights_sha256": run.weights_sha256,
        "run": run.run,
        "engine": run.engine,
        "precision": run.precision,
    }


def _warn_of_learned(folder: Path | None, names: Sequence[str], progress: Progress) -> None:
    """Say how many of the pictures a model of `mf train` has learned from, as far as their paths tell.

    `folder` is that of the model; None for other models.
    """
    learned = set() if folder is None else read_learned(folder)
    if count := sum(os.path.realpath(name) in learned for name in names):
        what = "was" if count == 1 else "were"
        progress(f"{count} of the {len(names)} pictures {what} learned from: these figures are too good")


def _find_published(model: str, request: EvaluateRequest) -> float | None:
    """Return the published top-1 of a model, 0 to 1; None where there is none, or it does not apply."""
    is_restricted = request.map_to is not None or request.valid_labels is not None
    if model not in VARIANTS or is_restricted or not request.is_published:
        return None
    top1 = VARIANTS[model].published_top1
    return None if top1 is None else top1 / 100


def _select_allowed(request: EvaluateRequest, labels: Sequence[Label]) -> NDArray[np.bool_] | None:
    """Return which classes can be given; None for all."""
    allowed = np.ones(len(labels), np.bool_)
    if request.map_to is not None:
        wnids = {label.wnid for label in load_imagenet_labels(1000)}
        allowed &= [label.wnid in wnids for label in labels]
    if request.valid_labels is not None:
        try:
            names = request.valid_labels.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {request.valid_labels}", "a class a line") from error
        try:
            mapping = map_classes(filter(None, map(str.strip, names)), labels)
        except UsageError as error:
            raise UsageError(f"{request.valid_labels}: {error.message}", error.hint) from error
        allowed &= np.isin(np.arange(len(labels)), list(mapping.indices.values()))
    if not allowed.any():
        raise UsageError("the model has none of these classes", "mf labels lists its classes")
    return None if allowed.all() else allowed


def _read_real_labels(
    request: EvaluateRequest, names: Sequence[str], labels: Sequence[Label]
) -> dict[str, frozenset[int]] | None:
    """Return the right classes of pictures, as the head's; None unless they are asked for."""
    if request.real_labels is None:
        return None
    lists = read_real_labels(request.real_labels, names)
    classes = {label.wnid: index for index, label in enumerate(labels)}
    head = [classes.get(label.wnid, -1) for label in load_imagenet_labels(1000)]  # which all have ids
    return {name: frozenset(head[index] for index in own) - {-1} for name, own in lists.items()}


def _describe_coverage(names: Sequence[str], truth: Truth, progress: Progress) -> dict[str, Any]:
    """Return how many of the pictures the model can be judged by.

    Raises:
        UsageError: none.
    """
    outside = [name for name in names if truth.find(name) is None and name]
    if len(outside) == len(names):
        raise UsageError("none of the pictures is of a class that can be given", "mf labels lists the model's classes")
    if outside:
        classes = len(set(outside))
        what = "1 class" if classes == 1 else f"{classes} classes"
        progress(
            f"left out: {len(outside)} of {len(names)} pictures, of {what} that the model does not have, "
            "or is not to give"
        )
    return {
        "classes_outside": len(set(outside)),
        "pictures_outside": len(outside),
        "coverage": (len(names) - len(outside)) / len(names),
    }


class _Run:
    """Classifies pictures and judges the answers; rows of an earlier run are taken as they are.

    Attributes:
        info: what the rows say of the run.
        images_per_s: how many pictures a second were classified, decoding included; None if none was.
    """

    def __init__(self, predictor: Predictor, truth: Truth, request: EvaluateRequest, progress: Progress) -> None:
        self._predictor = predictor
        self._truth = truth
        self._request = request
        self._progress = progress
        self.images_per_s: float | None = None
        settings = predictor.settings
        values = settings.values | {
            "mapping": sha256_of_json(sorted(truth.mapping.indices.items()))[:16],
            "allowed": None if truth.allowed is None else sha256_of_json(np.flatnonzero(truth.allowed).tolist())[:16],
        }
        run = sha256_of_json([settings.run, values["mapping"], values["allowed"]])[:16]
        self._settings = RunSettings(run, values)
        self.info = replace(predictor.run_info, run=self._settings.run)

    def judge(self, pictures: Sequence[LabelledPicture]) -> list[Judgement]:
        """Return the judgements, in the order of the pictures."""
        if self._request.predictions is None:
            return [judgement for _, judgement in self._stream(pictures)]
        file = ResultFile(
            self._request.predictions,
            self._settings,
            None,
            overwrite=self._request.overwrite,
            resume=self._request.resume,
        )
        with contextlib.closing(file.journal), translate_write_errors(file.partial):
            return self._judge_into(file, pictures)

    def _judge_into(self, file: ResultFile, pictures: Sequence[LabelledPicture]) -> list[Judgement]:
        known = self._read_finished(file, pictures) if self._request.resume else {}
        left = [picture for picture in pictures if picture.source.raw not in known]
        file.journal.begin()
        file.begin(self.info)
        for picture, (result, judgement) in zip(left, self._stream(left, len(known)), strict=True):
            row = result.to_dict() | {"truth": picture.label, "judged": describe(judgement)}
            with defer_signals():
                file.journal.rows.write(format_line(row) + "\n")
            known[picture.source.raw] = judgement
        failed = sum(judgement.answer is None for judgement in known.values())
        file.end(Summary(len(known), len(known) - failed, failed, complete=True))
        return [known[picture.source.raw] for picture in pictures]

    def _stream(
        self, pictures: Sequence[LabelledPicture], finished_before: int = 0
    ) -> Iterator[tuple[PictureResult, Judgement]]:
        started, failed = time.perf_counter(), 0
        results = self._predictor.stream(
            [picture.source for picture in pictures],
            batch_size=self._request.batch_size,
            workers=self._request.workers,
        )
        for done, (picture, result) in enumerate(zip(pictures, results, strict=True), 1):
            target = self._truth.mapping.indices[picture.label]
            result, judgement = judge_result(replace(result, run=self.info), target, self._truth, self._predictor)
            failed += judgement.answer is None
            self._progress(Tally(done, failed, finished_before, finished_before + len(pictures)))
            yield result, judgement
            self.images_per_s = done / (time.perf_counter() - started)
        if note := self._predictor.memory_note:
            self._progress(note)

    def _read_finished(self, file: ResultFile, pictures: Sequence[LabelledPicture]) -> dict[bytes, Judgement]:
        """Return what an earlier run has judged.

        Raises:
            OutputError: it judged other pictures, too.
        """
        wanted = {(p.source.input, p.source.input_b64): p for p in pictures}
        found = {}
        with file.partial.open("rb") as stream:
            for row in iter_rows(StoredResults(stream, str(file.partial))):
                picture = wanted.get((row.result.input, row.result.input_b64))
                if picture is None:
                    raise OutputError(
                        f"{self._request.predictions} belongs to a different run: {row.result.shown_name} is not among "
                        "the pictures of this one",
                        "use the data and the limit=N that it was begun with, or another file: predictions=FILE",
                    )
                target = self._truth.mapping.indices[picture.label]
                found[picture.source.raw] = judge_row(row.result, target, self._truth, row.judged)
        return found
