"""Signals: deferred to the end of what must be complete, but not forever."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import mfcli
from mfcli import signals
from mfcli.inputs.source import Source
from mfcli.results import PictureResult
from mfcli.runs import RunInfo, Summary
from mfcli.signals import ForcedInterrupt, defer_signals
from mfcli.tasks.predict import predict

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signals.install()
    signals._SignalState.raised_at = None
    yield
    signals._SignalState.last = None
    signals._SignalState.raised_at = None
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_at_once(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt(number)
    assert signals.was_interrupted()


def test_a_repeated_signal_interrupts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    interrupt()  # the run is already ending
    monkeypatch.setattr(signals, "_REPEAT_WINDOW_S", 0.05)
    time.sleep(0.1)
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_a_signal_is_deferred_to_the_end_of_the_body() -> None:
    done = []

    def work() -> None:
        with defer_signals():
            interrupt()
            interrupt()
            with defer_signals():
                interrupt()
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert not isinstance(caught.value, ForcedInterrupt)
    assert done == ["all of it"]
    with defer_signals():  # nothing is pending any more
        pass


def test_a_later_signal_interrupts_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_REPEAT_WINDOW_S", 0.05)

    def work() -> None:
        with defer_signals():
            interrupt()
            time.sleep(0.1)
            interrupt()
            raise AssertionError("not reached")

    with pytest.raises(ForcedInterrupt):
        work()


def test_the_row_being_written_is_completed_and_counted(coffee: Path) -> None:
    ended: list[Summary] = []

    class Writer:
        def begin(self, run: RunInfo) -> None: ...

        def write(self, result: PictureResult) -> None:
            if result.error:
                interrupt()

        def end(self, summary: Summary) -> None:
            ended.append(summary)

    sources = [Source(str(coffee)), Source("missing.jpg"), Source(str(coffee))]
    with pytest.raises(KeyboardInterrupt):
        predict(mfcli.load_predictor(), sources, Writer(), workers=0)
    assert ended == [Summary(2, 1, 1, complete=False)]
