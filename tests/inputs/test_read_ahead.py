"""Downloads that begin before they are opened."""

import io
import threading
from typing import BinaryIO

import pytest

from mfcli.errors import FailureCode, PictureError
from mfcli.inputs import read_ahead
from mfcli.inputs.read_ahead import MAX_BYTES_AHEAD, Download


class Fetch:
    """Counts and answers; objects have `size` bytes."""

    def __init__(self, size: int = 3) -> None:
        self.limits: list[int] = []
        self.size, self.begun = size, threading.Event()

    def __call__(self, max_bytes: int) -> BinaryIO:
        self.limits.append(max_bytes)
        self.begun.set()
        if self.size > max_bytes:
            raise PictureError(FailureCode.TOO_LARGE, f"is over {max_bytes} bytes")
        return io.BytesIO(bytes(self.size))


def test_it_is_fetched_before_it_is_opened_and_once() -> None:
    fetch = Fetch()
    download = Download(fetch, 10)
    download.start()
    download.start()
    assert fetch.begun.wait(10)
    assert download().read() == bytes(3)
    assert fetch.limits == [10]
    assert download().read() == bytes(3)
    assert fetch.limits == [10, 10]


def test_what_is_large_is_fetched_when_it_is_opened() -> None:
    fetch = Fetch(MAX_BYTES_AHEAD + 1)
    download = Download(fetch, 2**30)
    download.start()
    assert len(download().read()) == MAX_BYTES_AHEAD + 1
    assert fetch.limits == [MAX_BYTES_AHEAD, 2**30]


def test_a_failure_is_raised_where_it_is_opened() -> None:
    download = Download(Fetch(20), 10)
    download.start()
    with pytest.raises(PictureError, match="is over 10 bytes"):
        download()


def test_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(read_ahead, "_threads", [])
    monkeypatch.setattr(threading.Thread, "start", fail)
    fetch = Fetch()
    download = Download(fetch, 10)
    download.start()
    assert fetch.limits == []
    assert download().read() == bytes(3)
