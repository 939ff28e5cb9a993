"""The command `mf benchmark`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mfcli.cli.flags import name_flags
from mfcli.cli.help import list_choices
from mfcli.cli.options import MAX_WORKERS, Format, Offline, Quiet, complete_device, complete_model, parse_batch_size
from mfcli.cli.streams import fail, note, require_standard_output, standard_output
from mfcli.errors import ExitCode, UsageError
from mfcli.inference.engines.base import EngineName, Precision
from mfcli.outputs.writer import RecordFormat
from mfcli.settings import DEFAULT_BENCHMARK_ROUNDS, DEFAULT_BENCHMARK_SECONDS, Settings

if TYPE_CHECKING:
    from mfcli.tasks.benchmark import Rate, Row


def benchmark(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...",
            help="Names from mf list-models.",
            show_default="MF_MODEL, else bundled",
            autocompletion=complete_model,
        ),
    ] = None,
    engine: Annotated[
        list[EngineName] | None,
        typer.Option(
            metavar="ENGINE", help=f"What computes the logits: {list_choices(EngineName)}.", show_default="auto"
        ),
    ] = None,
    precision: Annotated[
        list[Precision] | None,
        typer.Option(metavar="TYPE", help=f"The arithmetic: {list_choices(Precision)}.", show_default="fp32"),
    ] = None,
    batch_size: Annotated[
        list[str] | None,
        typer.Option("--batch-size", "-b", metavar="N|auto", help="Pictures in a batch.", show_default="auto"),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="D", help="auto, cpu, cuda, cuda:N or mps.", autocompletion=complete_device)
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Cores for the engine.", show_default="all")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "-j",
            min=1,
            max=MAX_WORKERS,
            metavar="N",
            help="Threads that read and decode.",
            show_default="one per core",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A checkpoint of the only MODEL: .pth or .safetensors.",
            show_default=False,
            readable=False,
        ),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Use random weights: just as fast, and nothing is downloaded.")
    ] = False,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR|FILE", help="Pictures to read.", show_default="synthetic JPEGs of about 500x375 pixels"
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="Least measuring time of a row, without loading.")
    ] = DEFAULT_BENCHMARK_SECONDS,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Rounds that this time is divided into.")
    ] = DEFAULT_BENCHMARK_ROUNDS,
    format: Format = RecordFormat.TABLE,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Measure how fast models are on this machine.

    --engine, --precision, --batch-size and --images can be given several times; every combination of the first three
    is a row. The rows' rounds alternate, so that ratios hold on a busy machine. Rates are medians over the rounds. Exit
    code 5: a row could not be measured, 6: none could.
    """
    from mfcli.cli.progress import StderrProgress
    from mfcli.models.registry import default_variant
    from mfcli.outputs.records import write_records
    from mfcli.tasks import benchmark as task

    if not math.isfinite(seconds):
        raise UsageError(f"--seconds {seconds} is not a duration", f"--seconds {DEFAULT_BENCHMARK_SECONDS:g}")
    require_standard_output()
    settings = Settings.from_environ(offline=offline)
    plan = task.BenchmarkPlan(
        models=tuple(models or [default_variant(settings).name]),
        engines=tuple(dict.fromkeys(engine or [EngineName.AUTO])),
        precisions=tuple(dict.fromkeys(precision or [Precision.FP32])),
        batch_sizes=tuple(dict.fromkeys(map(parse_batch_size, batch_size or ["auto"]))),
        device=device,
        threads=threads,
        workers=workers,
        weights=weights,
        random_weights=random_weights,
        images=tuple(images or ()),
        seconds=seconds,
        rounds=rounds,
    )
    with StderrProgress(note, quiet) as progress:
        rows = task.benchmark(plan, settings, progress)
    failed = [row.error for row in rows if row.error]
    with standard_output() as stream:
        records = _list_table_records(rows) if format is RecordFormat.TABLE else [_make_record(row) for row in rows]
        write_records(format, stream, records)
    for message, hint in dict.fromkeys((error.message, error.hint) for error in failed):
        fail(message, hint)
    if failed:
        raise typer.Exit(ExitCode.SOME_FAILED if len(failed) < len(rows) else ExitCode.ALL_FAILED)


def _list_table_records(rows: "Sequence[Row]") -> list[dict[str, Any]]:
    """Return the records of a table; it has a column for errors only if there are any."""
    records = [_make_table_record(row) for row in rows]
    if any(row.error for row in rows):
        for record, row in zip(records, rows, strict=True):
            record["error"] = row.error and name_flags(row.error.message)
    return records


def _make_table_record(row: "Row") -> dict[str, Any]:
    setup, figures = row.setup, row.figures
    return {
        "model": row.case.model,
        "engine": setup.engine if setup else row.case.engine,
        "precision": setup.precision if setup else row.case.precision,
        "device": setup.device if setup else row.case.device,
        "batch": f"{setup.streams}x{setup.batch_size}" if setup else row.case.batch_size or "auto",
        "engine/s": figures and _format_rate(figures.engine),
        "end to end/s": figures and _format_rate(figures.end_to_end),
        "ratio": figures and f"{figures.ratio:.2f}",
        "p50 ms": figures and f"{figures.latency_p50_ms:.1f}",
        "p95 ms": figures and f"{figures.latency_p95_ms:.1f}",
        "peak MiB": figures and f"{figures.peak_memory_mib:.0f}",
    }


def _format_rate(rate: "Rate") -> str:
    return f"{rate.median:.1f} ({rate.min:.1f}-{rate.max:.1f})"


def _make_record(row: "Row") -> dict[str, Any]:
    case, setup, figures = row.case, row.setup, row.figures
    return {
        "model": case.model,
        "engine": setup.engine if setup else case.engine,
        "precision": setup.precision if setup else case.precision,
        "device": setup.device if setup else case.device,
        "batch_size": setup.batch_size if setup else case.batch_size,
        "streams": setup.streams if setup else None,
        "threads": case.threads,
        "workers": setup.workers if setup else case.workers,
        "engine_images_per_s": figures.engine.median if figures else None,
        "engine_images_per_s_min": figures.engine.min if figures else None,
        "engine_images_per_s_max": figures.engine.max if figures else None,
        "images_per_s": figures.end_to_end.median if figures else None,
        "images_per_s_min": figures.end_to_end.min if figures else None,
        "images_per_s_max": figures.end_to_end.max if figures else None,
        "ratio": figures.ratio if figures else None,
        "latency_p50_ms": figures.latency_p50_ms if figures else None,
        "latency_p95_ms": figures.latency_p95_ms if figures else None,
        "peak_memory_mib": figures.peak_memory_mib if figures else None,
        "error": name_flags(row.error.message) if row.error else None,
    }
