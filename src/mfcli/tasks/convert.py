"""Turn results in one format into another."""

from itertools import islice

from mfcli.errors import OutputError
from mfcli.outputs.reader import StoredResults
from mfcli.outputs.writer import Writer
from mfcli.runs import RunInfo, RunSettings, Summary


def survey(results: StoredResults, settings: RunSettings | None) -> tuple[RunInfo, Summary]:
    """Read all results once, and return their run and counts.

    Args:
        results: the file.
        settings: those kept beside the file, which say what its rows may not.

    Raises:
        OutputError: it holds no results, those of several runs, or something else.
    """
    runs: set[RunInfo] = set()
    inputs = failed = top_k = 0
    query: tuple[str, ...] = ()
    keep: dict[str, None] = {}
    for result in results:
        runs.add(result.run)
        inputs += 1
        failed += result.error is not None
        top_k = max(top_k, len(result.predictions))
        if result.match is not None:
            query = tuple(concept.label for concept in result.match.concepts)
        keep |= dict.fromkeys(result.kept or ())
    if not runs:
        raise OutputError(
            f"{results.name} holds no results", "wait for the first row of its run, or run mf predict again"
        )
    if len(runs) > 1:
        raise OutputError(f"{results.name} holds the results of {len(runs)} runs", "convert one run at a time")
    (run,) = runs
    known = dict(results.run) or (settings.values if settings is not None and settings.run == run.run else {})
    words, names = known.get("query", ()), known.get("keep", ())
    words = words["words"] if isinstance(words, dict) else words  # settings have all of the query
    if isinstance(names, str):  # settings have the names joined by commas
        names = keep or names.split(",")
    info = RunInfo(
        model=run.model,
        weights_sha256=run.weights_sha256,
        run=run.run,
        engine=known.get("engine"),
        precision=known.get("precision"),
        top_k=max(known.get("top_k", 0), top_k),
        confidence=known.get("confidence"),
        query=query if len(words) < len(query) else tuple(words),
        keep=tuple(names) or tuple(keep),
    )
    return info, Summary(inputs, inputs - failed, failed, results.complete, results.left_out)


def convert(results: StoredResults, run: RunInfo, summary: Summary, writer: Writer) -> None:
    """Write all results.

    Args:
        results: the file.
        run: theirs, from `survey`.
        summary: theirs, from `survey`.
        writer: gets them.

    Raises:
        OutputError: the file has changed since.
    """
    writer.begin(run)
    for result in islice(results, summary.inputs):  # a run in progress may have added more
        writer.write(result)
    writer.end(summary)
