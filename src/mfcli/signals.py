"""Handlers for SIGINT, SIGTERM and SIGHUP that end a run between two rows, never in the middle of one.

Only the command line calls `install`. In other programs Python's handling of SIGINT is unchanged, and `defer_signals`
has no effect.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

_REPEAT_WINDOW_S = 1.0
"""Time after a signal within which further signals count as the same request."""


class ForcedInterrupt(KeyboardInterrupt):
    """Raised inside `defer_signals` by a second, later signal: what was being written is incomplete."""


class _SignalState:
    depth = 0  # nested `defer_signals`
    pending_since: float | None = None
    raised_at: float | None = None
    last: int | None = None


def _on_signal(number: int, _: object) -> None:
    _SignalState.last = number
    now = time.monotonic()
    if not _SignalState.depth:
        if _SignalState.raised_at is None or now - _SignalState.raised_at > _REPEAT_WINDOW_S:
            _SignalState.raised_at = now
            raise KeyboardInterrupt
        return  # the run is already ending
    if _SignalState.pending_since is None:
        _SignalState.pending_since = now
    elif now - _SignalState.pending_since > _REPEAT_WINDOW_S:  # what is being written may never complete
        _SignalState.pending_since = None
        raise ForcedInterrupt


def install() -> None:
    """Install handlers that raise KeyboardInterrupt, delayed to the end of `defer_signals`.

    SIGINT is sent by Ctrl-C, SIGTERM by job schedulers, SIGHUP when the terminal closes. Ignored signals stay ignored,
    for example under nohup.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)


def was_interrupted() -> bool:
    """Return whether a signal has arrived; libraries may turn the KeyboardInterrupt into another error."""
    return _SignalState.last is not None


def end_by_sigint() -> None:
    """After Ctrl-C in a terminal, end the process by SIGINT: only then does a shell stop the loop it is running."""
    if _SignalState.last == signal.SIGINT and _is_in_foreground():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def _is_in_foreground() -> bool:
    """Whether this process belongs to the foreground process group of its terminal, which gets its Ctrl-C."""
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
    """Defer signals to the end of the body, so that it completes; a further signal a second later interrupts it.

    Raises:
        KeyboardInterrupt: at the end, if a signal has arrived.
        ForcedInterrupt: within the body.
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
