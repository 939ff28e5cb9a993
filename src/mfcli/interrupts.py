"""Ctrl-C and SIGTERM: they end a run between two rows, not within one.

`install` is for programs; in a program that has not called it, Python's own handling of SIGINT stays, and
`uninterrupted` does nothing.
"""

import contextlib
import signal
from collections.abc import Iterator


class _State:
    depth = 0
    pending = False
    seen = False


def _on_signal(*_: object) -> None:
    _State.seen = True
    if _State.depth and not _State.pending:
        _State.pending = True  # the second one is not kept waiting: whatever is written may never end
        return
    raise KeyboardInterrupt


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
    """Put the first signal off to the end of the body."""
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
    if _State.pending and not _State.depth:
        _State.pending = False
        raise KeyboardInterrupt
