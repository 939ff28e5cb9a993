"""Ctrl-C, SIGTERM and SIGHUP: they end a run between two rows, not within one.

`install` is for programs; in a program that has not called it, Python's own handling of SIGINT stays, and
`uninterrupted` does nothing.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

_PATIENCE_S = 1.0
"""How long after a signal another one still means the same."""


class ImpatientInterrupt(KeyboardInterrupt):
    """A signal that was not put off: what was being written is torn."""


class _State:
    depth = 0
    pending_since: float | None = None
    raised_at: float | None = None
    seen: int | None = None


def _on_signal(number: int, _: object) -> None:
    _State.seen = number
    now = time.monotonic()
    if not _State.depth:
        if _State.raised_at is None or now - _State.raised_at > _PATIENCE_S:
            _State.raised_at = now
            raise KeyboardInterrupt
        return  # the run is ending because of the one before
    if _State.pending_since is None:
        _State.pending_since = now
    elif now - _State.pending_since > _PATIENCE_S:  # whatever is being written may never end
        _State.pending_since = None
        raise ImpatientInterrupt


def install() -> None:
    """Let signals raise KeyboardInterrupt outside of `uninterrupted`.

    SIGINT is Ctrl-C, SIGTERM is what schedulers send, SIGHUP comes when the terminal goes away.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, _on_signal)


def was_interrupted() -> bool:
    """Whether a signal has come: libraries turn a KeyboardInterrupt into errors of their own."""
    return _State.seen is not None


def end_a_loop() -> None:
    """After Ctrl-C in a terminal, end by that signal, and not with its exit code: a shell ends its loop only then."""
    if _State.seen == signal.SIGINT and _is_in_foreground():
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
def uninterrupted() -> Iterator[None]:
    """Put signals off to the end of the body; one that comes a second after the first is not put off any more.

    Raises:
        KeyboardInterrupt: at the end, where a signal has come.
        ImpatientInterrupt: within the body.
    """
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
    if _State.pending_since is not None and not _State.depth:
        _State.pending_since = None
        _State.raised_at = time.monotonic()
        raise KeyboardInterrupt
