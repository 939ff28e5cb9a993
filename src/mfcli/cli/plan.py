"""The commands of `mf plan`: create, status, finish."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mfcli.cli import predict_options as option
from mfcli.cli.destination import refuse_offline
from mfcli.cli.help import add_command, list_examples
from mfcli.cli.option_groups import DecodingOptions, InputOptions
from mfcli.cli.options import Format, Offline, Quiet
from mfcli.cli.requests import MAX_MISSING, InputRequest, find_near
from mfcli.cli.streams import note, standard_output
from mfcli.errors import ExitCode, NoInputsError, UsageError
from mfcli.files import is_glob
from mfcli.inputs.plan import DEFAULT_SHARD_SIZE
from mfcli.outputs.writer import RecordFormat
from mfcli.results import Progress
from mfcli.runs import count
from mfcli.settings import Settings

if TYPE_CHECKING:
    from mfcli.tasks.plan import PlanStatus

_CREATE = "create"


class _PlanGroup(TyperGroup):
    """A group in which `mf plan INPUT...` is `mf plan create INPUT...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            _check_command(args[0], list(self.commands))
            args = [_CREATE, *args]
        return super().parse_args(ctx, args)


def _check_command(word: str, commands: list[str]) -> None:
    """Check that an input is not a misspelt command.

    Raises:
        UsageError: it is.
    """
    from mfcli.models.meanings import find_similar

    is_free = not is_glob(word) and not os.path.lexists(word)
    if is_free and (near := find_similar(word, {name: name for name in commands}, 1)):
        raise UsageError(f"mf plan has no command {word!r}, and there is no such file", f"mf plan {near[0]} --help")


app = typer.Typer(
    name="plan",
    cls=_PlanGroup,
    no_args_is_help=True,
    help="Divide a big job into shards, for any number of processes and machines.\n\n"
    "mf plan INPUT... is mf plan create INPUT...; mf plan create --help has its options, such as -o and --shard-size.",
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
    from mfcli.inputs.left_out import LeftOut
    from mfcli.inputs.plan import make_plan

    decoding = DecodingOptions(formats=formats)
    settings = Settings.from_environ(offline=offline)
    refuse_offline(output, offline=settings.offline)
    request = InputRequest.parse(inputs, decoding, settings)
    left_out = LeftOut()
    sources = request.open(left_out, names_only=True)
    with StderrProgress(note, quiet, with_bar=True) as progress:
        _check_missing(request, progress)
        plan = make_plan(sources, output, shard_size, progress)
        if words := left_out.in_words():
            progress(words)
    if not quiet:
        counts = f"{count(plan.inputs, 'picture')} in {count(len(plan.sha256), 'shard')}"
        note(f"{counts}; mf predict --plan {shlex.quote(str(plan.folder))} -o OUT")


def _check_missing(request: InputRequest, progress: Progress) -> None:
    """Say which arguments name no file: each is planned, and fails when it is classified.

    Raises:
        NoInputsError: all of them.
    """
    missing = request.list_missing()
    meant = {name: find_near(name) for name in missing[:MAX_MISSING]}
    if missing and request.files_from is None and len(missing) == len(request.names):
        near = " ".join(shlex.quote(name) for name in meant.values() if name)
        hint = f"did you mean {near}?" if near else "ls shows the names"
        raise NoInputsError(f"no such file: {', '.join(meant)}{', ...' * (len(missing) > len(meant))}", hint)
    for name, other in meant.items():
        progress(f"no such file, and planned all the same: {name}" + (f"; did you mean {other}?" if other else ""))


def status(plan: _Plan, out: _Out, format: Format = RecordFormat.TABLE) -> None:
    """Say which shards are done, how many rows failed, and the rate."""
    from mfcli.inputs.plan import Plan
    from mfcli.outputs.parts import PartFolder
    from mfcli.tasks.plan import get_status

    _refuse_offline(plan, out)
    planned = Plan.read(plan)
    _write(get_status(planned, PartFolder.find(out, planned.digest)), format)


def finish(plan: _Plan, out: _Out, format: Format = RecordFormat.TABLE) -> None:
    """Check that every picture has exactly one row, and write _SUCCESS and _summary.json.

    Exit code 9: parts are missing, or have other rows. 6: they are whole, and no picture was classified.
    """
    from mfcli.cli.progress import StderrProgress
    from mfcli.inputs.plan import Plan
    from mfcli.outputs.parts import PartFolder
    from mfcli.tasks import plan as task

    _refuse_offline(plan, out)
    planned = Plan.read(plan)
    with StderrProgress(note, with_bar=True) as progress:
        status = task.finish(planned, PartFolder.find(out, planned.digest), progress)
    _write(status, format)
    if status.failed and not status.ok:
        note(f"none of {count(status.inputs, 'picture')} was classified")
        raise typer.Exit(ExitCode.ALL_FAILED)


def _refuse_offline(*folders: Path) -> None:
    for folder in folders:
        refuse_offline(folder, offline=Settings.from_environ().offline)


def _write(status: "PlanStatus", format: RecordFormat) -> None:
    from dataclasses import asdict

    from mfcli.outputs.records import write_records

    with standard_output() as stream:
        write_records(format, stream, [asdict(status)])


add_command(app, create, "mf plan photos -o plan", "mf plan 'data/*.parquet' -o plan --shard-size 5000")
add_command(app, status, "mf plan status plan out", "mf plan status plan out --format json")
add_command(app, finish, "mf plan finish plan out")
