"""The commands of `mf plan`, and mf predict for the shards of a plan."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mfcli.cli import predict_options as option
from mfcli.cli.help import add_command, list_examples
from mfcli.cli.option_groups import DecodingOptions, InputOptions
from mfcli.cli.options import Format, Offline, Quiet
from mfcli.cli.requests import InputRequest
from mfcli.cli.streams import note, standard_output
from mfcli.inputs.plan import DEFAULT_SHARD_SIZE
from mfcli.outputs.writer import RecordFormat
from mfcli.settings import Settings

if TYPE_CHECKING:
    from mfcli.tasks.plan import PlanStatus

_CREATE = "create"


class _PlanGroup(TyperGroup):
    """A group in which `mf plan INPUT...` is `mf plan create INPUT...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = [_CREATE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="plan",
    cls=_PlanGroup,
    no_args_is_help=True,
    help="Divide a big job into shards, for any number of processes and machines.",
    epilog=list_examples(
        ("mf plan photos -o plan", "mf predict --plan plan -o out --shard 0/8", "mf plan finish plan out")
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Plan = Annotated[Path, typer.Argument(metavar="PLAN", help="What mf plan wrote.", show_default=False)]
_Out = Annotated[Path, typer.Argument(metavar="OUT", help="Where mf predict --plan writes.", show_default=False)]


def create(
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PLAN", help="The folder of the plan.", readable=False)
    ],
    inputs: InputOptions,
    formats: option.Formats = None,
    shard_size: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures in a shard.")] = DEFAULT_SHARD_SIZE,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """List pictures once, and divide them into shards.

    No picture is opened. Names stay as they are given: relative ones are those of the folder in which mf predict runs.
    """
    from mfcli.cli.progress import StderrProgress
    from mfcli.inputs.plan import make_plan

    decoding = DecodingOptions(formats=formats)
    sources = InputRequest.parse(inputs, decoding, Settings.from_environ(offline=offline)).open(names_only=True)
    with StderrProgress(note, quiet, with_bar=True) as progress:
        plan = make_plan(sources, output, shard_size, progress)
    if not quiet:
        note(f"{plan.inputs} pictures in {len(plan.sha256)} shards; mf predict --plan {output} -o OUT")


def status(plan: _Plan, out: _Out, format: Format = RecordFormat.TABLE) -> None:
    """Say which shards are done, how many rows failed, and the rate."""
    from mfcli.inputs.plan import Plan
    from mfcli.outputs.parts import PartFolder
    from mfcli.tasks.plan import get_status

    planned = Plan.read(plan)
    _write(get_status(planned, PartFolder.find(out, planned.digest)), format)


def finish(plan: _Plan, out: _Out, format: Format = RecordFormat.TABLE) -> None:
    """Check that every picture has exactly one row, and write _SUCCESS and _summary.json.

    Exit code 9: parts are missing, or have other rows.
    """
    from mfcli.cli.progress import StderrProgress
    from mfcli.inputs.plan import Plan
    from mfcli.outputs.parts import PartFolder
    from mfcli.tasks import plan as task

    planned = Plan.read(plan)
    with StderrProgress(note, with_bar=True) as progress:
        status = task.finish(planned, PartFolder.find(out, planned.digest), progress)
    _write(status, format)


def _write(status: "PlanStatus", format: RecordFormat) -> None:
    from dataclasses import asdict

    from mfcli.outputs.records import write_records

    with standard_output() as stream:
        write_records(format, stream, [asdict(status)])


add_command(app, create, "mf plan photos -o plan", "mf plan 'data/*.parquet' -o plan --shard-size 5000")
add_command(app, status, "mf plan status plan out", "mf plan status plan out --format json")
add_command(app, finish, "mf plan finish plan out")
