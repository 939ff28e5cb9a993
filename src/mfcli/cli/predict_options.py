"""The options of mf predict: their names, values and help."""

from pathlib import Path
from typing import Annotated

import typer

from mfcli.cli.help import list_choices
from mfcli.cli.options import MAX_WORKERS, complete_device, complete_model
from mfcli.inference.engines.base import EngineName, Precision
from mfcli.inputs.codecs import OPTIONAL_FORMATS, DecodeMode
from mfcli.models.registry import Interpolation as InterpolationName
from mfcli.outputs.writer import FormatName, LabelType
from mfcli.results import Abstain
from mfcli.settings import DEFAULT_TOP_K

_INPUTS, _MODEL, _OUTPUT, _RUNNING, _FAILING = "Inputs", "Model", "Output", "Running", "Failures"
_PREPROCESSING, _AS_TRAINED = "Preprocessing", "the model's"

Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT...",
        help="Files, folders, globs, .zip, .tar and .parquet, also in s3://, gs://, az:// and hf://datasets/; http(s) "
        "addresses; - for a picture on standard input.",
        show_default=False,
    ),
]
FilesFrom = Annotated[
    list[str] | None,
    typer.Option(
        "--files-from",
        metavar="FILE",
        help="Read inputs from FILE, one per line; - for standard input.",
        show_default=False,
        rich_help_panel=_INPUTS,
    ),
]
Null = Annotated[bool, typer.Option("--null", "-0", help="In --files-from, NUL ends a name.", rich_help_panel=_INPUTS)]
Include = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="In folders, archives, globs and lists, take only what matches.",
        show_default="picture suffixes",
        rich_help_panel=_INPUTS,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Leave out what matches.", show_default=False, rich_help_panel=_INPUTS),
]
NoRecursive = Annotated[bool, typer.Option("--no-recursive", help="Leave subfolders out.", rich_help_panel=_INPUTS)]
Column = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Column of the pictures in Parquet files.",
        show_default="the only one of bytes, or of names",
        rich_help_panel=_INPUTS,
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN|SUFFIX",
        help="Copy a column of Parquet files, or the files of a suffix in tars, into the rows.",
        show_default=False,
        rich_help_panel=_INPUTS,
    ),
]
Plan = Annotated[
    Path | None,
    typer.Option(
        metavar="PLAN",
        help="Classify the shards of a plan into the folder -o; see mf plan.",
        show_default=False,
        readable=False,
        rich_help_panel=_INPUTS,
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(metavar="I/N", help="Each N-th shard, from I on.", show_default="all", rich_help_panel=_INPUTS),
]
Shards = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Shards such as 3,7-9.", show_default="all", rich_help_panel=_INPUTS),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS|local",
        help="Classify the shards on a Ray cluster: HOST:PORT, auto, or local for this machine alone.",
        show_default=False,
        rich_help_panel=_RUNNING,
    ),
]
RayTimeout = Annotated[
    float,
    typer.Option(
        min=1, metavar="S", help="Time for the cluster to come and have room, in seconds.", rich_help_panel=_RUNNING
    ),
]
NoExif = Annotated[
    bool, typer.Option("--no-exif", help="Do not turn pictures by their EXIF orientation.", rich_help_panel=_INPUTS)
]
Formats = Annotated[
    str | None,
    typer.Option(
        metavar="F,F",
        help=f"Decode these formats, too: {', '.join(OPTIONAL_FORMATS).lower()}.",
        show_default=False,
        rich_help_panel=_INPUTS,
    ),
]
MaxPixels = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", help="Refuse pictures with more pixels, before or after resizing.", rich_help_panel=_INPUTS
    ),
]
DecodeTimeout = Annotated[
    float,
    typer.Option(min=0.1, metavar="S", help="Time limit for decoding a picture, in seconds.", rich_help_panel=_INPUTS),
]
Timeout = Annotated[
    float, typer.Option(min=0.1, metavar="S", help="Time limit per URL, in seconds.", rich_help_panel=_INPUTS)
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="A name from mf list-models.",
        show_default="MF_MODEL, else bundled",
        autocompletion=complete_model,
        rich_help_panel=_MODEL,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|FOLDER",
        help="A checkpoint of that model: .pth, .safetensors, or a folder of timm or Hugging Face.",
        show_default=False,
        readable=False,
        rich_help_panel=_MODEL,
    ),
]
TopK = Annotated[
    str | None,
    typer.Option(
        "--top-k",
        "-k",
        metavar="N|all",
        help="Predictions per picture.",
        show_default=f"{DEFAULT_TOP_K}, or all classes",
        rich_help_panel=_MODEL,
    ),
]
Confidence = Annotated[
    float,
    typer.Option(
        metavar="P", help="Name a concept that holds this share of the probability: 0.5 to 1.", rich_help_panel=_MODEL
    ),
]
ShownAbstentions = Annotated[
    Abstain | None,
    typer.Option(
        metavar="WHICH",
        help=f"Mark answers that are not to be trusted: {list_choices(Abstain)}.",
        show_default="both for models of mf train, else off",
        rich_help_panel=_MODEL,
    ),
]
MaxError = Annotated[
    str | None,
    typer.Option(
        metavar="P%",
        help="Mark as unsure until at most this share of the others is wrong.",
        show_default="10%",
        rich_help_panel=_MODEL,
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Class names as text, CSV or JSON.",
        show_default=False,
        readable=False,
        rich_help_panel=_MODEL,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Mean per channel, of values from 0 to 1.",
        show_default=_AS_TRAINED,
        rich_help_panel=_PREPROCESSING,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Standard deviation per channel.",
        show_default=_AS_TRAINED,
        rich_help_panel=_PREPROCESSING,
    ),
]
CropPct = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="Share of the shorter side that the crop keeps.",
        show_default=_AS_TRAINED,
        rich_help_panel=_PREPROCESSING,
    ),
]
Interpolation = Annotated[
    InterpolationName | None,
    typer.Option(
        metavar="FILTER",
        help=f"Filter of resizing: {list_choices(InterpolationName)}.",
        show_default=_AS_TRAINED,
        rich_help_panel=_PREPROCESSING,
    ),
]
InputSize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Height and width of the crop, in pixels.",
        show_default=_AS_TRAINED,
        rich_help_panel=_PREPROCESSING,
    ),
]
Decode = Annotated[
    DecodeMode,
    typer.Option(
        metavar="MODE",
        help="exact, or scaled to decode large JPEGs at 1/2, 1/4 or 1/8 of their size.",
        rich_help_panel=_PREPROCESSING,
    ),
]
Format = Annotated[
    FormatName | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help=f"How results are written: {list_choices(FormatName)}.",
        show_default="from the suffix of -o, else table",
        rich_help_panel=_OUTPUT,
    ),
]
ShownLabel = Annotated[
    LabelType | None,
    typer.Option(
        "--label-type",
        metavar="TYPE",
        help=f"What tables show of a class: {list_choices(LabelType)}.",
        show_default="name",
        rich_help_panel=_OUTPUT,
    ),
]
Show = Annotated[
    bool, typer.Option("--show", help="Show each picture beside its table, in a terminal.", rich_help_panel=_OUTPUT)
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write results there, also to s3://, gs:// or az://, compressed if it ends in .gz; - for standard output.",
        show_default=False,
        readable=False,
        rich_help_panel=_OUTPUT,
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Write a line per picture, such as '{input} {prob:.2f}'.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
NoHeader = Annotated[
    bool, typer.Option("--no-header", help="Begin csv and tsv without column names.", rich_help_panel=_OUTPUT)
]
CsvSafe = Annotated[
    bool,
    typer.Option("--csv-safe", help="Put ' before cells that spreadsheets would compute.", rich_help_panel=_OUTPUT),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing FILE.", rich_help_panel=_OUTPUT)]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with FILE: skip what is finished.", rich_help_panel=_OUTPUT)
]
RetryFailed = Annotated[
    bool,
    typer.Option("--retry-failed", help="Resume, and classify the failed pictures again.", rich_help_panel=_OUTPUT),
]
BatchSize = Annotated[
    str, typer.Option("--batch-size", "-b", metavar="N|auto", help="Pictures in a batch.", rich_help_panel=_RUNNING)
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "-j",
        min=1,
        max=MAX_WORKERS,
        metavar="N",
        help="Pictures that are decoded at once.",
        show_default="one per core",
        rich_help_panel=_RUNNING,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Cores for the engine.", show_default="all", rich_help_panel=_RUNNING),
]
Engine = Annotated[
    EngineName,
    typer.Option(
        metavar="ENGINE", help=f"What computes the logits: {list_choices(EngineName)}.", rich_help_panel=_RUNNING
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="D",
        help="auto, cpu, cuda, cuda:N or mps.",
        rich_help_panel=_RUNNING,
        autocompletion=complete_device,
    ),
]
ArithmeticPrecision = Annotated[
    Precision,
    typer.Option(
        metavar="TYPE", help=f"Data type of the computation: {list_choices(Precision)}.", rich_help_panel=_RUNNING
    ),
]
AllowFailures = Annotated[
    bool, typer.Option("--allow-failures", help="Exit with 0 although pictures failed.", rich_help_panel=_FAILING)
]
MaxFailures = Annotated[
    str | None,
    typer.Option(
        metavar="N|P%",
        help="Stop with exit code 5 when more have failed.",
        show_default=False,
        rich_help_panel=_FAILING,
    ),
]
