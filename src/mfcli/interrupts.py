"""Ctrl-C and SIGTERM: they end a run between two rows, not within one.

`install` is for programs; in a program that has not called it, Python's own handling of SIGINT stays, and
`uninterrupted` does nothing.
"""

import contextlib
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
    seen = False


def _on_signal(*_: object) -> None:
    _State.seen = True
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
    """Let SIGINT and SIGTERM, which schedulers send, raise KeyboardInterrupt outside of `uninterrupted`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, _on_signal)


def was_interrupted() -> bool:
    """Whether a signal has come: libraries turn a KeyboardInterrupt into errors of their own."""
    return _State.seen


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
