"""Interrupts: put off to the end of what must be whole, but not for ever."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import mfcli
from mfcli import signals
from mfcli.inputs.sources import Source
from mfcli.results import PictureResult, RunInfo, Summary
from mfcli.signals import ForcedInterrupt, defer_signals
from mfcli.tasks.predict import predict

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signals.install()
    signals._SignalState.raised_at = None
    yield
    signals._SignalState.seen = None
    signals._SignalState.raised_at = None
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_it_comes_at_once(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt(number)
    assert signals.was_interrupted()


def test_one_that_follows_at_once_means_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    interrupt()  # the run is being brought to its end
    monkeypatch.setattr(signals, "_PATIENCE_S", 0.05)
    time.sleep(0.1)
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_within_it_waits_for_the_end() -> None:
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
    with defer_signals():  # it came once
        pass


def test_a_later_one_is_not_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_PATIENCE_S", 0.05)

    def work() -> None:
        with defer_signals():
            interrupt()
            time.sleep(0.1)
            interrupt()
            raise AssertionError("not reached")

    with pytest.raises(ForcedInterrupt):
        work()


def test_the_row_that_was_being_written_counts(coffee: Path) -> None:
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
    assert ended == [Summary(2, 1, 1)]
