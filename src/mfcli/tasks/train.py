"""Teach a model the user's own classes: features of pictures in, a folder with a model and its figures out."""

import time
from collections.abc import Sequence
from typing import Any

from mfcli.errors import NoInputsError, UsageError
from mfcli.inference.model_loading import load_predictor
from mfcli.inputs.dataset import Dataset, read_dataset
from mfcli.outputs.training import describe_choice, write_report
from mfcli.results import Failure, Progress
from mfcli.settings import Settings
from mfcli.training.assignment import assign_pictures, list_classes, list_notes
from mfcli.training.candidates import check_device, choose, finetune_backbone, fit_probe
from mfcli.training.folder import check_name, hold_folder, read_finished
from mfcli.training.model import write_model
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
        OutputError: the folder exists, or cannot be written.
        UsageError: the dataset is not usable, see `inputs.dataset.read_dataset`.
    """
    started = time.monotonic()
    check_name(request)
    with hold_folder(request.output) as folder:
        if (finished := read_finished(request)) is not None:
            progress(f"{request.output} is finished")
            return finished
        folder.prepare_state(request)
        if request.finetune is not None:
            check_device(request.finetune)

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
        if predictor.artifact.folder is not None:
            raise UsageError(f"{predictor.artifact.variant} is a model of mf train itself", "name its base model")
        views = compute_views(predictor, [picture.source for picture in dataset.pictures], settings, progress)
        pictures = assign_pictures(dataset, views, request.seed)
        classes = list_classes(pictures)
        if len(classes) < 2:
            raise NoInputsError(
                f"{len(classes)} of {len(dataset.classes)} classes have readable pictures to learn from",
                f"{_describe_failure(dataset, views, classes)}at least two are needed",
            )
        for note in list_notes(dataset, pictures):
            progress(note)
        candidates = [probe := fit_probe(predictor, pictures, classes, request, is_over)]
        if request.finetune is not None:
            candidates.append(finetune_backbone(probe, classes, request, folder, settings, is_over, progress))
        kept = choose(candidates, classes)
        with folder.write() as path:
            own = write_model(path, request, kept, classes)
            report = make_report(own, str(request.data), kept, candidates, classes)
            write_report(path, report)
        for note in describe_choice(report.metrics):
            progress(note)
    return report.metrics


def _describe_failure(dataset: Dataset, views: Sequence[Views | Failure], classes: Sequence[str]) -> str:
    """Return why the first class without readable pictures has none; an empty text if there is none."""
    for picture, own in zip(dataset.pictures, views, strict=True):
        if isinstance(own, Failure) and picture.label not in classes:
            name = picture.source.shown_name
            return f"class {picture.label} has no readable picture: {name}: {own.message}; "
    return ""
