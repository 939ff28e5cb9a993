"""mf cache ls, path, verify, rm, prune."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mfcli.cli.options import DryRun, Format, Models, Quiet
from mfcli.cli.streams import note, standard_output
from mfcli.errors import CheckError
from mfcli.outputs.writer import FormatName
from mfcli.settings import Settings

if TYPE_CHECKING:
    from mfcli.tasks.cache import CacheEntry

app = typer.Typer(
    name="cache",
    no_args_is_help=True,
    help="Look after downloaded checkpoints and prepared artifacts.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


_COLUMNS = ("kind", "model", "size_bytes", "sha256", "path")


def _record(entry: "CacheEntry") -> dict[str, Any]:
    values = (entry.kind.value, entry.model, entry.size_bytes, entry.sha256, str(entry.path))
    return dict(zip(_COLUMNS, values, strict=True))


def _write(
    format: FormatName, records: Sequence[dict[str, Any]], brief: Sequence[str], columns: Sequence[str] = _COLUMNS
) -> None:
    from mfcli.outputs.records import write_records

    with standard_output() as stream:
        in_brief = format is FormatName.TABLE
        write_records(format, stream, [{k: r[k] for k in brief} if in_brief else r for r in records], columns)


@app.command()
def ls(format: Format = FormatName.TABLE) -> None:
    """List what is in the cache, with sizes in bytes."""
    from mfcli.tasks import cache as task

    found = task.list_entries(Settings.from_environ())
    _write(format, [_record(entry) for entry in found], ("kind", "model", "size_bytes", "path"))
    if format is FormatName.TABLE:
        note(f"{len(found)} files, {sum(entry.size_bytes for entry in found) / 1e6:.1f} MB")


@app.command()
def path() -> None:
    """Print the cache folder."""
    with standard_output() as stream:
        stream.write(f"{Settings.from_environ().cache_dir}\n")


@app.command()
def verify(format: Format = FormatName.TABLE) -> None:
    """Compute the digest of every checkpoint and artifact; exit code 9 if one is not what it was.

    Status new: placed by hand and not used yet, so that there is nothing to compare with. Status stale: an artifact of
    another version, which is as it was made, and which `mf cache prune` deletes.
    """
    from mfcli.tasks import cache as task

    found = list(task.verify(Settings.from_environ()))
    records = [{"status": v.status.value, **_record(v.entry), "problem": v.problem} for v in found]
    _write(format, records, ("status", "kind", "model", "path", "problem"), ("status", *_COLUMNS, "problem"))
    if bad := [v.entry for v in found if v.problem]:
        raise CheckError(f"{len(bad)} of {len(found)} files are not what they were", _mend(bad))


def _mend(bad: "Sequence[CacheEntry]") -> str:
    """What to do about damaged files: checkpoints are fetched again, artifacts made again from good checkpoints."""
    from mfcli.models.registry import VARIANTS
    from mfcli.tasks.cache import Kind

    checkpoints = [entry for entry in bad if entry.kind is Kind.CHECKPOINT]
    names = sorted({entry.model or "" for entry in checkpoints if entry.model in VARIANTS})
    strange = [str(entry.path) for entry in checkpoints if entry.model not in VARIANTS]
    made = [str(entry.path) for entry in bad if entry.kind is Kind.ARTIFACT and entry.model not in names]
    steps = {
        f"fetch again: mf download --force {' '.join(names)}": names,
        f"delete what the next prediction makes again: rm {shlex.join(made)}": made,
        f"delete what is of no model: rm {shlex.join(strange)}": strange,
    }
    return "; ".join(step for step, files in steps.items() if files)


@app.command()
def rm(
    models: Models,
    dry_run: DryRun = False,
    format: Format = FormatName.TABLE,
    quiet: Quiet = False,
) -> None:
    """Delete the checkpoints and artifacts of models."""
    from mfcli.tasks import cache as task

    found = task.match_entries(Settings.from_environ(), models)
    problem = None
    if not dry_run:
        found, problem = task.remove(found)
    _tell(found, dry_run, format, quiet)
    if problem:
        raise problem


@app.command()
def prune(
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Also checkpoints whose artifact is good.")
    ] = False,
    dry_run: DryRun = False,
    format: Format = FormatName.TABLE,
    quiet: Quiet = False,
) -> None:
    """Delete partial downloads, stale artifacts and left-overs."""
    from mfcli.tasks import cache as task

    found = task.find_prunable(Settings.from_environ(), checkpoints)
    problem = None
    if not dry_run:
        found, problem = task.remove(found, keep_sidecars=True)
    _tell(found, dry_run, format, quiet)
    if checkpoints and not quiet and any(entry.kind is task.Kind.CHECKPOINT for entry in found):
        note("predictions go on; --engine torch, or a later version's artifacts, will fetch the checkpoints again")
    if problem:
        raise problem


def _tell(found: "Sequence[CacheEntry]", dry_run: bool, format: FormatName, quiet: bool) -> None:
    _write(format, [_record(entry) for entry in found], ("kind", "model", "size_bytes", "path"))
    if not quiet:
        verb = "would be deleted" if dry_run else "deleted"
        note(f"{len(found)} files {verb}, {sum(entry.size_bytes for entry in found) / 1e6:.1f} MB")
