"""The commands `mf list-models`, `mf info` and `mf download`."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mfcli.cli.flags import name_flags
from mfcli.cli.help import list_choices
from mfcli.cli.options import DryRun, Format, InfoFormat, Model, Models, Offline, OneFormat, Quiet, complete_model
from mfcli.cli.streams import fail, note, standard_output
from mfcli.errors import UsageError
from mfcli.models.registry import Family, Pretraining, find_variant
from mfcli.outputs.writer import RecordFormat
from mfcli.settings import Settings

if TYPE_CHECKING:
    from mfcli.tasks.download import DownloadResult
    from mfcli.tasks.list_models import ListedModel


def list_models(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN", help="A glob, or a part of a name.", show_default=False, autocompletion=complete_model
        ),
    ] = None,
    family: Annotated[
        Family | None,
        typer.Option(
            metavar="FAMILY",
            help=f"Only this family: {list_choices(Family)}.",
            show_default=False,
            case_sensitive=False,
        ),
    ] = None,
    input_size: Annotated[
        int | None, typer.Option(metavar="N", help="Only this height and width, in pixels.", show_default=False)
    ] = None,
    pretraining: Annotated[
        Pretraining | None,
        typer.Option(
            metavar="DATA", help=f"Only with this training data: {list_choices(Pretraining)}.", show_default=False
        ),
    ] = None,
    downloaded: Annotated[bool, typer.Option("--downloaded", help="Only what is on this machine.")] = False,
    format: Format = RecordFormat.TABLE,
) -> None:
    """List the models, with their published figures and which are on this machine.

    params_m: millions of parameters; macs_g: billions of multiply-adds; top1: ImageNet-1k accuracy in percent as
    published; here_mb: megabytes on this machine, checkpoint and artifact together. Narrow terminals show fewer
    columns.
    """
    from mfcli.outputs.records import write_records
    from mfcli.tasks import list_models as task

    wanted = task.ModelFilter(pattern, family, input_size, pretraining, downloaded)
    listed = task.list_models(wanted, Settings.from_environ())
    make_record = _make_table_record if format is RecordFormat.TABLE else _make_record
    with standard_output() as stream:
        records = [make_record(model) for model in listed]
        write_records(format, stream, records, optional=("macs_g", "classes", "pretraining", "params_m", "here_mb"))


def _make_table_record(listed: "ListedModel") -> dict[str, Any]:
    variant = listed.variant
    return {
        "name": variant.name,
        "input_size": variant.input_size[1],
        "pretraining": variant.pretraining.value,
        "classes": variant.num_classes,
        "params_m": round(variant.params / 1e6, 1),
        "macs_g": variant.published_macs_g,
        "top1": variant.published_top1,
        "here_mb": round(listed.size_bytes / 1e6, 1) if listed.size_bytes else None,
    }


def _make_record(listed: "ListedModel") -> dict[str, Any]:
    return {**listed.variant.as_record(), "downloaded": bool(listed.size_bytes), "size_bytes": listed.size_bytes}


def info(
    model: Model,
    format: OneFormat = InfoFormat.TABLE,
) -> None:
    """Show everything about one model: its row, how pictures are prepared for it, and its artifacts on this machine."""
    from mfcli.outputs.json import format_document
    from mfcli.outputs.records import write_records
    from mfcli.tasks.info import describe

    fields = describe(find_variant(model), Settings.from_environ())
    with standard_output() as stream:
        if format is InfoFormat.JSON:
            stream.write(format_document(fields))
            return
        artifacts, weights = fields.pop("artifacts"), fields.pop("weights") or {}
        training = fields.pop("training") or {}
        fields |= {f"weights_{key}": value for key, value in weights.items()}
        fields |= {
            f"training_{key}": round(value, 4) if isinstance(value, float) else value for key, value in training.items()
        }
        fields |= {f"artifact_{key}": value for artifact in artifacts[:1] for key, value in artifact.items()}
        fields["other_artifacts"] = [artifact["path"] for artifact in (*artifacts[1:], *fields["other_artifacts"])]
        rows = [{"field": name, "value": value} for name, value in fields.items() if value not in (None, [], {})]
        write_records(RecordFormat.TABLE, stream, rows)


def download(
    models: Models,
    force: Annotated[bool, typer.Option("--force", help="Download again what is on this machine.")] = False,
    origin: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE|URL", help="A local file, or a mirror.", show_default=False),
    ] = None,
    expect_sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="The digest that the file must have.", show_default=False)
    ] = None,
    pin: Annotated[
        bool, typer.Option("--pin", help="Write address, size and SHA-256 to mf.lock, which is compared ever after.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the models with PyTorch; the same as MF_CHECK=1.")
    ] = False,
    dry_run: DryRun = False,
    format: Format = RecordFormat.TABLE,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Fetch checkpoints, verify them, and prepare them for prediction.

    --pin writes mf.lock in the current folder, or the file that MF_LOCK names. From then on, checkpoints of its models
    must have the digests in it; --pin --force replaces them.

    An interrupted download resumes at its last byte. Exit code 4: one of the models could not be obtained.
    """
    from mfcli.cli.progress import StderrProgress
    from mfcli.hub.acquire import FetchOptions
    from mfcli.hub.cache import list_partial_downloads
    from mfcli.outputs.records import write_records
    from mfcli.tasks import download as task

    if origin == "":
        raise UsageError("--from is empty", "--from FILE, or --from https://...")
    if expect_sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", expect_sha256):
        raise UsageError(
            f"--expect-sha256 {expect_sha256} is not a SHA-256 digest", "64 hexadecimal digits, as sha256sum prints"
        )
    if pin and dry_run:
        raise UsageError("--pin and --dry-run exclude each other", "leave out one of them")
    settings = Settings.from_environ(offline=offline, compare=check)
    fetch = FetchOptions(force, origin, expect_sha256, pin=pin)
    with StderrProgress(note, quiet) as progress:
        work = task.plan if dry_run else task.download
        results = work(models, settings, fetch, progress)
    with standard_output() as stream:
        records = [_make_download_record(result) for result in results]
        if format is RecordFormat.TABLE:
            columns = ("name", "status", "size_bytes", "url", "path")
            records = [{column: record[column] for column in columns} for record in records]
        write_records(format, stream, records)
    failed = [result.error for result in results if result.error]
    if not (failed or quiet or dry_run) and (partial := list_partial_downloads(settings)):
        note(
            f"{len(partial)} unfinished downloads are in the cache: the same mf download goes on with each, and "
            "mf cache prune deletes them"
        )
    for error in failed[:-1]:
        fail(error.message, error.hint)
    if failed:
        raise failed[-1]


def _make_download_record(result: "DownloadResult") -> dict[str, Any]:
    return {
        "name": result.name,
        "status": result.status.value,
        "size_bytes": result.size_bytes,
        "sha256": result.sha256,
        "path": result.path,
        "url": result.url,
        "error": name_flags(result.error.message) if result.error else None,
    }
