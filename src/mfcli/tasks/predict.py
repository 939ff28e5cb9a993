"""Classify pictures one after another and hand every result to a writer."""

from collections.abc import Iterable

from mfcli.errors import MfError
from mfcli.formats.base import Writer
from mfcli.predictor import Predictor
from mfcli.results import Summary
from mfcli.sources import Source


def predict(predictor: Predictor, sources: Iterable[Source], writer: Writer) -> Summary:
    """Write a row for every source, in order, and return the counts.

    An interrupt, or an engine that fails, leaves what was written complete in its format, then goes on to the caller.

    Raises:
        EngineError: the engine fails.
        OSError: the writer's stream fails.
    """
    inputs = failed = 0
    writer.begin(predictor.run)
    try:
        for result in predictor.predict(sources):
            writer.write(result)
            inputs += 1
            failed += result.error is not None
    except (KeyboardInterrupt, MfError):
        writer.end(Summary(inputs, inputs - failed, failed))
        raise
    summary = Summary(inputs, inputs - failed, failed)
    writer.end(summary)
    return summary
