"""Downloads that begin before their pictures are opened, in threads, so that many requests are under way at once."""

import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

from mfcli.errors import FailureCode, PictureError

REQUESTS = 64
"""Requests under way."""
MAX_BYTES_AHEAD = 2**23
"""What is larger is fetched when it is opened: as many as `REQUESTS` wait in memory."""


class Download:
    """Something to open that may be fetched ahead of time; it is fetched once each time that it is opened."""

    def __init__(self, fetch: Callable[[int], BinaryIO], max_bytes: int) -> None:
        """Begin with nothing under way.

        Args:
            fetch: called in any thread with the largest size; returns the bytes, or raises PictureError.
            max_bytes: the largest size.
        """
        self._fetch, self._max_bytes = fetch, max_bytes
        self._answer: queue.SimpleQueue[BinaryIO | Exception | None] | None = None

    def start(self) -> None:
        """Begin to fetch it in another thread, if there can be one."""
        if self._answer is None and _start_threads():
            self._answer = queue.SimpleQueue()
            _tasks.put(partial(self._run, self._answer))

    def __call__(self) -> BinaryIO:
        """Return the bytes, once they have arrived.

        Raises:
            PictureError: they cannot be fetched.
        """
        answer, self._answer = self._answer, None
        found = None if answer is None else answer.get()
        if isinstance(found, Exception):
            raise found
        return self._fetch(self._max_bytes) if found is None else found

    def _run(self, answer: "queue.SimpleQueue[BinaryIO | Exception | None]") -> None:
        try:
            answer.put(self._fetch(min(self._max_bytes, MAX_BYTES_AHEAD)))
        except Exception as error:  # raised where it is opened
            is_large = isinstance(error, PictureError) and error.code is FailureCode.TOO_LARGE
            answer.put(None if is_large else error)


_tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
_threads: list[threading.Thread] = []
_lock = threading.Lock()


def _start_threads() -> bool:
    """Start the threads, once; return whether there is any. They end with the program."""
    with _lock:
        while len(_threads) < REQUESTS:
            thread = threading.Thread(target=_work, daemon=True, name="mf-fetch")
            try:
                thread.start()
            except RuntimeError:  # a limit on processes
                break
            _threads.append(thread)
        return bool(_threads)


def _work() -> None:
    while True:
        _tasks.get()()
