"""The command `mf train`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mfcli.cli import predict_options as option
from mfcli.cli.options import InfoFormat, Offline, OneFormat, Quiet
from mfcli.cli.streams import note, require_standard_output, standard_output
from mfcli.errors import UsageError
from mfcli.outputs.writer import RecordFormat
from mfcli.settings import DEFAULT_DECODE_TIMEOUT_S, Settings


def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|CSV",
            help="DIR/CLASS/*.jpg, DIR/{train,val}/CLASS/*.jpg, or a CSV file with the columns path,label.",
            readable=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The new model's folder.", readable=False)
    ],
    model: option.Model = None,
    weights: option.Weights = None,
    balanced: Annotated[
        str, typer.Option("--class-weight", metavar="none|balanced", help="Balanced: every class counts the same.")
    ] = "none",
    seed: Annotated[int, typer.Option(metavar="N", help="Another one sets other pictures aside.")] = 0,
    time_limit: Annotated[
        float | None,
        typer.Option(min=0, metavar="S", help="Try no more strengths after so many seconds.", show_default=False),
    ] = None,
    decode_timeout: option.DecodeTimeout = DEFAULT_DECODE_TIMEOUT_S,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on, or keep a finished model of the same arguments.")
    ] = False,
    format: OneFormat = InfoFormat.TABLE,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Teach a model your own classes from a folder of folders.

    A new head is fitted to the model's features: seconds on a CPU, without PyTorch. Without DIR/val a fifth of the
    pictures is set aside to judge by. The folder holds the model, its figures and a card; its path is a model's name
    from then on.
    """
    # small matrices gain nothing from BLAS's threads, which wait for one another; set before NumPy is imported
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from mfcli.cli.progress import StderrProgress
    from mfcli.outputs.json import format_document
    from mfcli.outputs.records import write_records
    from mfcli.tasks.train import train as run
    from mfcli.training.request import ClassWeight, TrainRequest

    require_standard_output()
    if balanced not in list(ClassWeight):
        raise UsageError(f"--class-weight {balanced!r} is neither none nor balanced", "--class-weight balanced")
    request = TrainRequest(
        data=data,
        output=output,
        model=model,
        weights=weights,
        class_weight=ClassWeight(balanced),
        seed=seed,
        time_limit_s=time_limit,
        decode_timeout_s=decode_timeout,
        overwrite=overwrite,
        resume=resume,
    )
    with StderrProgress(note, quiet, with_bar=True) as progress:
        metrics = run(request, Settings.from_environ(offline=offline), progress)
    with standard_output() as stream:
        if format is InfoFormat.JSON:
            stream.write(format_document(metrics))
        else:
            write_records(RecordFormat.TABLE, stream, _list_figures(metrics))
    if not quiet:
        note(f"the model is in {output}: mf predict PICTURE --model {output}")


def _list_figures(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a record for each set of pictures that the model was judged by."""
    words = {"val": "pictures set aside", "test": "test pictures", "out_of_fold": "five folds of what was learned"}
    records = []
    for kind, what in words.items():
        if figures := metrics[kind]:
            low, high = figures["top1_interval"]
            records.append(
                {
                    "judged_by": what,
                    "pictures": figures["pictures"],
                    "top1": f"{figures['top1']:.1%}",
                    "interval_95": f"{low:.1%} to {high:.1%}",
                    "log_loss": round(figures["log_loss"], 3),
                    "calibration_error": round(figures["calibration_error"], 3),
                }
            )
    return records
