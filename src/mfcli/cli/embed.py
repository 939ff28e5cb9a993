"""The command `mf embed`."""

from pathlib import Path
from typing import Annotated

import typer

from mfcli.cli import predict_options as option
from mfcli.cli.destination import Destination, name_leftovers
from mfcli.cli.flags import name_flags_of_error
from mfcli.cli.layouts import FeatureLayout
from mfcli.cli.option_groups import DecodingOptions, FileOptions, InputOptions, ModelOptions, RunningOptions
from mfcli.cli.options import Offline, Quiet, parse_batch_size
from mfcli.cli.requests import InputRequest, ModelRequest, exit_code
from mfcli.cli.streams import note
from mfcli.inputs.left_out import LeftOut
from mfcli.settings import Settings

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write them there: .npz, or .parquet, which needs pyarrow.",
        readable=False,
    ),
]


def embed(
    *,
    output: Output,
    inputs: InputOptions,
    decoding: DecodingOptions,
    model: ModelOptions,
    existing: FileOptions,
    running: RunningOptions,
    allow_failures: option.AllowFailures = False,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Write the features of pictures: the vectors that the model's head classifies.

    Every input gives one row, in order: input, member, status, width, height, features and error. Exit code 0: all have
    features, 5: some failed, 6: all did.
    """
    from mfcli.cli.progress import StderrProgress
    from mfcli.outputs.files import check_folder
    from mfcli.tasks.predict import predict

    destination = Destination.parse(output, FeatureLayout.parse(output), existing)
    if destination.upload is None:
        check_folder(output)
    settings = Settings.from_environ(offline=offline)
    request = InputRequest.parse(inputs, decoding, settings)
    destination.check(request.all_names, offline=settings.offline)
    if not quiet:
        name_leftovers(destination.path)
    batch_size = parse_batch_size(running.batch_size)
    left_out = LeftOut()
    with StderrProgress(note, quiet, with_bar=True) as progress:
        sources = request.open(left_out)
        model_request = ModelRequest(model=model, running=running, decoding=decoding, confidence=None, features=True)
        predictor = model_request.load(settings, progress, request.selection)
        with destination.open(predictor, compact=True, quiet=quiet) as sink:
            sink = sink.map(name_flags_of_error)
            summary = predict(
                predictor,
                sources,
                sink.writer,
                batch_size=batch_size,
                workers=running.workers,
                journal=sink.journal,
                retry_writer=sink.retry_writer,
                progress=progress,
            )
        if words := left_out.in_words():
            progress(words)
    if not quiet:
        note(f"{summary.in_words('embedded')}; {destination.name}")
    raise typer.Exit(exit_code(summary, allow_failures=allow_failures))
