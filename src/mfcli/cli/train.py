"""The command `mf train`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mfcli.cli import predict_options as option
from mfcli.cli.help import list_choices
from mfcli.cli.options import InfoFormat, Offline, OneFormat, Quiet, complete_device
from mfcli.cli.streams import note, require_standard_output, standard_output
from mfcli.errors import UsageError
from mfcli.inference.engines.base import Precision
from mfcli.outputs.writer import RecordFormat
from mfcli.settings import DEFAULT_DECODE_TIMEOUT_S, Settings
from mfcli.training.request import OptimizerName

_FINETUNING = "Fine-tuning"


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
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Train the whole backbone, too; needs PyTorch and time.")
    ] = False,
    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Passes over the pictures.", show_default="20", rich_help_panel=_FINETUNING),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Learning rate of the head.", show_default="the optimizer's", rich_help_panel=_FINETUNING
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            "-b",
            metavar="N",
            help="Pictures in a step.",
            show_default="32",
            rich_help_panel=_FINETUNING,
        ),
    ] = None,
    optimizer: Annotated[
        OptimizerName | None,
        typer.Option(
            metavar="NAME", help=list_choices(OptimizerName), show_default="adamw", rich_help_panel=_FINETUNING
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Stop after N epochs that bring nothing.", show_default="5", rich_help_panel=_FINETUNING
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="D",
            help="cpu, cuda, cuda:N or mps.",
            show_default="auto",
            rich_help_panel=_FINETUNING,
            autocompletion=complete_device,
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(metavar="TYPE", help="fp32 or bf16.", show_default="fp32", rich_help_panel=_FINETUNING),
    ] = None,
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
    from mfcli.training.request import ClassWeight, FinetuneOptions, TrainRequest

    require_standard_output()
    if balanced not in list(ClassWeight):
        raise UsageError(f"--class-weight {balanced!r} is neither none nor balanced", "--class-weight balanced")
    given = {
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "patience": patience,
        "device": device,
        "precision": precision,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if chosen and not finetune:
        name, value = next(iter(chosen.items()))
        raise UsageError(f"{name}={value} is an option of fine-tuning", "finetune=True")
    request = TrainRequest(
        data=data,
        output=output,
        model=model,
        weights=weights,
        class_weight=ClassWeight(balanced),
        seed=seed,
        finetune=FinetuneOptions(**chosen) if finetune else None,
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
        note(_describe_judging(metrics))
        note(f"the model is in {output}: mf predict PICTURE --model {output}")


def _describe_judging(metrics: dict[str, Any]) -> str:
    """Return how many of the pictures set aside are answered without a mark, or that there are none."""
    val = metrics["val"]
    if not val:
        return "no pictures were set aside to judge the model by: how good it is on new ones is not known"
    marks = val["abstention"]
    answered, error = marks["answered"], marks["error_of_answers"]
    wrong = "" if error is None else f", {error:.1%} of them wrong"
    return f"of the pictures set aside {answered} of {val['pictures']} are answered without a mark{wrong}"


def _list_figures(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a record for each set of pictures that a model was judged by; after a fine-tuning for both models."""
    words = {
        "val": "pictures set aside",
        "test": "test pictures",
        "held_out": "pictures held out",
        "out_of_fold": "five folds of what was learned",
    }
    tried = metrics["finetune"]
    models = {kind: tried[kind] for kind in ("probe", "finetuned")} if tried else {"": metrics}
    records = []
    for kind, judged in models.items():
        for split, what in words.items():
            if figures := judged.get(split):
                low, high = figures["top1_interval"]
                records.append(
                    ({"model": f"{kind}, kept" if kind == tried["kept"] else kind} if tried else {})
                    | {
                        "judged_by": what,
                        "pictures": figures["pictures"],
                        "top1": f"{figures['top1']:.1%}",
                        "interval_95": f"{low:.1%} to {high:.1%}",
                        "log_loss": round(figures["log_loss"], 3),
                        "calibration_error": round(figures["calibration_error"], 3),
                    }
                )
    return records
