"""The commands of `mf cache`: ls, path, verify, rm, prune."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mfcli.cli.help import add_command, list_examples
from mfcli.cli.options import DryRun, Format, ModelsOrFiles, Quiet
from mfcli.cli.streams import note, standard_output
from mfcli.errors import CheckError
from mfcli.outputs.writer import RecordFormat
from mfcli.settings import Settings

if TYPE_CHECKING:
    from mfcli.tasks.cache import CacheEntry

app = typer.Typer(
    name="cache",
    no_args_is_help=True,
    help="Look after downloaded checkpoints and prepared artifacts.",
    epilog=list_examples(("mf cache ls", "mf cache verify", "mf cache prune --dry-run")),
    context_settings={"help_option_names": ["-h", "--help"]},
)


_COLUMNS = ("kind", "model", "size_bytes", "sha256", "path", "origins", "date")


def _make_record(entry: "CacheEntry") -> dict[str, Any]:
    values = (
        *(entry.kind.value, entry.model, entry.size_bytes, entry.sha256, str(entry.path)),
        *(list(entry.origins), entry.date),
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _write(
    format: RecordFormat,
    records: Sequence[dict[str, Any]],
    table_columns: Sequence[str],
    columns: Sequence[str] = _COLUMNS,
    optional: Sequence[str] = (),
) -> None:
    """Write records: a table with only some of their columns, the other formats with all of them."""
    from mfcli.outputs.records import write_records

    if format is RecordFormat.TABLE:
        records = [{column: record[column] for column in table_columns} for record in records]
    with standard_output() as stream:
        write_records(format, stream, records, columns, optional)


def ls(format: Format = RecordFormat.TABLE) -> None:
    """List what is in the cache, with sizes in bytes."""
    from mfcli.tasks import cache as task

    entries = task.list_entries(Settings.from_environ())
    records = [_make_record(entry) for entry in entries]
    if format is RecordFormat.TABLE:
        records = [{**record, "date": (record["date"] or "")[:10]} for record in records]
    _write(format, records, ("kind", "model", "size_bytes", "date", "path", "origins"), optional=("origins", "date"))
    if format is RecordFormat.TABLE:
        note(_describe_size(entries))


def path() -> None:
    """Print the cache folder."""
    with standard_output() as stream:
        stream.write(f"{Settings.from_environ().cache_dir}\n")


def verify(
    against_torch: Annotated[
        bool,
        typer.Option("--against-torch", help="Also compare artifacts whose checkpoint is in the cache with PyTorch."),
    ] = False,
    format: Format = RecordFormat.TABLE,
) -> None:
    """Compute the digest of every checkpoint and artifact; exit code 9 if one does not match.

    Status new: a file placed by hand and not used yet, so there is no digest to compare with. Status stale: an intact
    artifact of another version, which `mf cache prune` deletes. With --against-torch, `difference` is the largest one
    of an artifact's logits from PyTorch's, in units of their standard deviation; above 0.0001 the artifact is bad.
    """
    from mfcli.tasks import cache as task

    checks = list(task.verify(Settings.from_environ(), against_torch))
    records = [{"status": c.status.value, **_make_record(c.entry), "problem": c.problem} for c in checks]
    extra = ["problem"]
    if against_torch:
        records = [{**r, "difference": c.difference} for r, c in zip(records, checks, strict=True)]
        extra += ["difference"]
    _write(format, records, ("status", "kind", "model", "path", *extra), ("status", *_COLUMNS, *extra))
    if damaged := [c.entry for c in checks if c.problem]:
        kind = "damaged or differ from torch" if against_torch else "damaged"
        raise CheckError(f"{len(damaged)} of {len(checks)} files are {kind}", _suggest_repair(damaged))


def _suggest_repair(damaged: "Sequence[CacheEntry]") -> str:
    """Suggest commands: checkpoints are downloaded again, artifacts rebuilt from intact checkpoints."""
    from mfcli.models.registry import VARIANTS
    from mfcli.tasks.cache import Kind

    checkpoints = [entry for entry in damaged if entry.kind is Kind.CHECKPOINT]
    names = sorted({entry.model or "" for entry in checkpoints if entry.model in VARIANTS})
    unknown = [str(entry.path) for entry in checkpoints if entry.model not in VARIANTS]
    artifacts = [str(entry.path) for entry in damaged if entry.kind is Kind.ARTIFACT and entry.model not in names]
    steps = {
        f"download again: mf download --force {' '.join(names)}": names,
        f"delete, and the next prediction rebuilds it: rm {shlex.join(artifacts)}": artifacts,
        f"delete files of unknown models: rm {shlex.join(unknown)}": unknown,
    }
    return "; ".join(step for step, files in steps.items() if files)


def rm(
    models: ModelsOrFiles,
    dry_run: DryRun = False,
    format: Format = RecordFormat.TABLE,
    quiet: Quiet = False,
) -> None:
    """Delete the checkpoints and artifacts of models, or one file of the cache, or the artifact of one file.

    An artifact is shared by files with the same weights; it is deleted for all of them.
    """
    from mfcli.tasks import cache as task

    entries = task.match_entries(Settings.from_environ(), models)
    error = None
    if not dry_run:
        entries, error = task.remove(entries)
    _report(entries, dry_run, format, quiet)
    if error:
        raise error


def prune(
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Also checkpoints whose artifact is intact.")
    ] = False,
    dry_run: DryRun = False,
    format: Format = RecordFormat.TABLE,
    quiet: Quiet = False,
) -> None:
    """Delete partial downloads, stale artifacts and left-over temporary files."""
    from mfcli.tasks import cache as task

    entries = task.find_prunable(Settings.from_environ(), checkpoints)
    error = None
    if not dry_run:
        entries, error = task.remove(entries, keep_sidecars=True)
    _report(entries, dry_run, format, quiet)
    if checkpoints and not quiet and any(entry.kind is task.Kind.CHECKPOINT for entry in entries):
        note(
            "predictions still work; --engine torch, another --input-size and later versions of mf "
            "will download the checkpoints again"
        )
    if error:
        raise error


def _report(entries: "Sequence[CacheEntry]", dry_run: bool, format: RecordFormat, quiet: bool) -> None:
    _write(format, [_make_record(entry) for entry in entries], ("kind", "model", "size_bytes", "path"))
    if not quiet:
        note(_describe_size(entries, " would be deleted" if dry_run else " deleted"))


def _describe_size(entries: "Sequence[CacheEntry]", verb: str = "") -> str:
    files = "1 file" if len(entries) == 1 else f"{len(entries)} files"
    return f"{files}{verb}, {sum(entry.size_bytes for entry in entries) / 1e6:.1f} MB"


add_command(app, ls, "mf cache ls", "mf cache ls --format csv", "mf cache ls --format json")
add_command(app, path, "mf cache path", 'du -sh "$(mf cache path)"', "MF_CACHE_DIR=/data/mf mf cache path")
add_command(app, verify, "mf cache verify", "mf cache verify --against-torch", "mf cache verify --format json")
add_command(app, rm, "mf cache rm caformer_s18", "mf cache rm 'caformer_*' --dry-run", "mf cache rm mine.pth")
add_command(app, prune, "mf cache prune --dry-run", "mf cache prune", "mf cache prune --checkpoints")
