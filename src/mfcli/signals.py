"""Ctrl-C, SIGTERM and SIGHUP: they end a run between two rows, not within one.

`install` is for programs; in a program that has not called it, Python's own handling of SIGINT stays, and
`defer_signals` does nothing.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

_PATIENCE_S = 1.0
"""How long after a signal another one still means the same."""


class ForcedInterrupt(KeyboardInterrupt):
    """A signal that was not put off: what was being written is torn."""


class _SignalState:
    depth = 0
    pending_since: float | None = None
    raised_at: float | None = None
    seen: int | None = None


def _on_signal(number: int, _: object) -> None:
    _SignalState.seen = number
    now = time.monotonic()
    if not _SignalState.depth:
        if _SignalState.raised_at is None or now - _SignalState.raised_at > _PATIENCE_S:
            _SignalState.raised_at = now
            raise KeyboardInterrupt
        return  # the run is ending because of the one before
    if _SignalState.pending_since is None:
        _SignalState.pending_since = now
    elif now - _SignalState.pending_since > _PATIENCE_S:  # whatever is being written may never end
        _SignalState.pending_since = None
        raise ForcedInterrupt


def install() -> None:
    """Let signals raise KeyboardInterrupt outside of `defer_signals`.

    SIGINT is Ctrl-C, SIGTERM is what schedulers send, SIGHUP comes when the terminal goes away.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, _on_signal)


def was_interrupted() -> bool:
    """Whether a signal has come: libraries turn a KeyboardInterrupt into errors of their own."""
    return _SignalState.seen is not None


def end_by_sigint() -> None:
    """After Ctrl-C in a terminal, end by that signal, and not with its exit code: a shell ends its loop only then."""
    if _SignalState.seen == signal.SIGINT and _is_in_foreground():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def _is_in_foreground() -> bool:
    """Whether a terminal sends its Ctrl-C to this process."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Put signals off to the end of the body; one that comes a second after the first is not put off any more.

    Raises:
        KeyboardInterrupt: at the end, where a signal has come.
        ImpatientInterrupt: within the body.
    """
    _SignalState.depth += 1
    try:
        yield
    finally:
        _SignalState.depth -= 1
    if _SignalState.pending_since is not None and not _SignalState.depth:
        _SignalState.pending_since = None
        _SignalState.raised_at = time.monotonic()
        raise KeyboardInterrupt
