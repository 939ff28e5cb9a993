"""Teach a model the user's own classes: features of pictures in, a folder with a model and its figures out."""

import time
from collections.abc import Sequence
from typing import Any

from mfcli.errors import NoInputsError
from mfcli.inference.predictor import load_predictor
from mfcli.inputs.dataset import read_dataset
from mfcli.models.head import fit_head
from mfcli.outputs.training import write_report
from mfcli.results import Failure, Progress
from mfcli.settings import Settings
from mfcli.training.assignment import assign_pictures, list_classes, list_notes, make_training_set
from mfcli.training.folder import check_name, hold_folder, read_finished
from mfcli.training.model import fit_limits, write_model
from mfcli.training.report import make_report
from mfcli.training.request import TrainRequest
from mfcli.training.views import Views, compute_views


def train(request: TrainRequest, settings: Settings, progress: Progress = lambda _: None) -> dict[str, Any]:
    """Train a head, write the folder, and return its figures.

    Features are kept in the cache, so that a training that was interrupted goes on where it was.

    Args:
        request: what to do.
        settings: locate the cache.
        progress: told notes, and the counts of pictures.

    Raises:
        EngineError: the engine fails.
        ModelError: the base model is unknown or cannot be obtained.
        NoInputsError: no picture can be read.
        OutputError: the folder is there, or cannot be written.
        UsageError: the dataset is not usable, see `inputs.dataset.read_dataset`.
    """
    started = time.monotonic()
    check_name(request)
    with hold_folder(request.output) as folder:
        if (finished := read_finished(request)) is not None:
            progress(f"{request.output} is finished")
            return finished

        def is_over() -> bool:
            return request.time_limit_s is not None and time.monotonic() - started > request.time_limit_s

        dataset = read_dataset(request.data)
        predictor = load_predictor(
            request.model,
            weights=request.weights,
            features=True,
            abstain="off",
            decode_timeout_s=request.decode_timeout_s,
            settings=settings,
            progress=progress,
        )
        views = compute_views(predictor, [picture.source for picture in dataset.pictures], settings, progress)
        pictures = assign_pictures(dataset, views, request.seed)
        classes = list_classes(pictures)
        if len(classes) < 2:
            raise NoInputsError(
                f"{len(classes)} of {len(dataset.classes)} classes have readable pictures to learn from",
                f"{_first_failure(views)}; at least two are needed",
            )
        for note in list_notes(dataset, pictures):
            progress(note)
        training = make_training_set(pictures, classes, request.class_weight, request.seed)
        fitted = fit_head(training, is_over)
        limits = fit_limits(training, fitted)
        with folder.write() as path:
            own = write_model(path, request, predictor, fitted, limits, classes)
            origin = {"base": predictor.artifact.variant, "data": str(request.data)}
            report = make_report(own, origin, fitted, limits, pictures, classes)
            write_report(path, report)
    return report.metrics


def _first_failure(views: Sequence[Views | Failure]) -> str:
    return next((f"the first one that cannot be read {own.message}" for own in views if isinstance(own, Failure)), "")
