"""The command `mf predict`."""

import typer

from mfcli.cli import predict_options as option
from mfcli.cli.destination import Destination, parse_output
from mfcli.cli.layouts import Layout
from mfcli.cli.option_groups import (
    DecodingOptions,
    FileOptions,
    InputOptions,
    ModelOptions,
    OverrideOptions,
    RunningOptions,
)
from mfcli.cli.options import Offline, Quiet, parse_batch_size, parse_share, parse_top_k
from mfcli.cli.predict_run import run
from mfcli.cli.requests import InputRequest, ModelRequest, PredictRequest, exit_code, import_numpy
from mfcli.cli.streams import note
from mfcli.errors import UsageError
from mfcli.inputs.codecs import DecodeMode
from mfcli.outputs.writer import FormatName
from mfcli.settings import DEFAULT_CONFIDENCE, DEFAULT_RAY_TIMEOUT_S, Settings


def predict(
    *,
    inputs: InputOptions,
    keep: option.Keep = None,
    plan: option.Plan = None,
    shard: option.Shard = None,
    shards: option.Shards = None,
    decoding: DecodingOptions,
    model: ModelOptions,
    top_k: option.TopK = None,
    confidence: option.Confidence = DEFAULT_CONFIDENCE,
    abstain: option.ShownAbstentions = None,
    max_error: option.MaxError = None,
    overrides: OverrideOptions,
    decode: option.Decode = DecodeMode.EXACT,
    format: option.Format = None,
    label_type: option.ShownLabel = None,
    show: option.Show = False,
    template: option.Template = None,
    no_header: option.NoHeader = False,
    csv_safe: option.CsvSafe = False,
    output: option.Output = None,
    existing: FileOptions,
    running: RunningOptions,
    ray: option.Ray = None,
    ray_timeout: option.RayTimeout = DEFAULT_RAY_TIMEOUT_S,
    allow_failures: option.AllowFailures = False,
    max_failures: option.MaxFailures = None,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Classify pictures.

    Every input gives one row, in order; one that cannot be read gives a row that says why. Exit code 0: all were
    classified, 5: some were not, 6: none was.
    """
    import_numpy()
    from mfcli.tasks.predict import MaxFailures

    path = parse_output(output)
    if plan is not None:
        _check_plan(inputs, existing, show=show)
        format = format or FormatName.JSONL
    elif any(given is not None for given in (shard, shards, ray)):
        raise UsageError("--shard, --shards and --ray are about a plan", "mf predict --plan PLAN -o OUT --shard 0/8")
    layout = Layout.parse(path, format, template, header=not no_header, csv_safe=csv_safe, label_type=label_type)
    destination = Destination.parse(path, layout, existing)
    if show and (path is not None or layout.format is not FormatName.TABLE):
        raise UsageError("--show is about tables in a terminal", "leave out --show, or -o and --format")
    settings = Settings.from_environ(offline=offline)
    request = PredictRequest(
        inputs=InputRequest.parse(inputs, decoding, settings, keep),
        model=ModelRequest(
            model=model,
            running=running,
            decoding=decoding,
            overrides=overrides,
            decode=decode,
            top_k=None if top_k is None else parse_top_k(top_k),
            confidence=confidence,
            abstain=abstain,
            max_error=None if max_error is None else parse_share(max_error, "--max-error"),
        ),
        destination=destination,
        batch_size=parse_batch_size(running.batch_size),
        workers=running.workers,
        max_failures=MaxFailures.parse(max_failures),
        settings=settings,
        quiet=quiet,
        show=show,
    )
    if plan is None:
        summary = run(request)
    else:
        from mfcli.cli.predict_shards import predict_shards

        summary = predict_shards(request, plan, shard=shard, shards=shards, ray=ray, ray_timeout_s=ray_timeout)
    if destination.path is not None and not quiet:
        note(f"{summary.in_words()}; {destination.name}")
    raise typer.Exit(exit_code(summary, allow_failures=allow_failures))


def _check_plan(inputs: InputOptions, existing: FileOptions, *, show: bool) -> None:
    if inputs.inputs or inputs.lists:
        raise UsageError("--plan has the inputs already", "leave out --plan, or the inputs")
    if show:
        raise UsageError("--show is about tables in a terminal", "leave out --show")
    if existing != FileOptions():
        raise UsageError(
            "a part of a plan that is there is done", "leave out --overwrite and --resume, or delete the part"
        )
