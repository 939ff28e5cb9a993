"""The processes that decode: a server, which imports what they need once, and the workers that it forks.

The run (isolation.py) hands the server, over a socket, a socket and a shared memory for each worker that it wants. A
worker is then sent one open file at a time, and answers with a line of JSON; the pixels are in the shared memory. When
a worker dies, the server says so in its place. When the run closes a worker's socket, the server kills the worker; when
the run ends, however it ends, all of them end.
"""

import contextlib
import json
import mmap
import os
import select
import signal
import socket
from dataclasses import asdict
from io import BufferedReader
from typing import Any, NoReturn

import numpy as np

from mfcli.inference.loading import PERHAPS_FOR_MEMORY, LoadedPicture, PictureLoader, is_short_of_memory
from mfcli.inference.sandbox import confine
from mfcli.inputs.codecs import DecodeMode
from mfcli.memory import available_bytes
from mfcli.models.preprocess import PreprocessPlan

REQUEST = b"."
"""What a file is sent with."""
MAX_WORD_BYTES = 32
MAX_LINE_BYTES = 65536


def to_json(loader: PictureLoader) -> str:
    """Return a loader as the server is given it."""
    return json.dumps(asdict(loader))


def _from_json(text: str) -> PictureLoader:
    fields: dict[str, Any] = json.loads(text)
    plan = PreprocessPlan.from_json(json.dumps(fields["plan"]))
    fields |= {"plan": plan, "formats": tuple(fields["formats"]), "decode": DecodeMode(fields["decode"])}
    return PictureLoader(**fields)


def count_shared_bytes(loader: PictureLoader) -> int:
    """Return the size of the memory that a worker shares with the run: the pixels, then the thumbnail."""
    return _count_pixel_bytes(loader) + 3 * (loader.thumbnail_side or 0) ** 2


def _count_pixel_bytes(loader: PictureLoader) -> int:
    height, width = loader.plan.crop_size
    return 3 * height * width * 4


def read_shared(
    memory: memoryview, loader: PictureLoader, thumbnail_bytes: int
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], bytes]:
    """Return copies of the pixels, float32 (3, H, W), and of the bytes of the thumbnail."""
    end = _count_pixel_bytes(loader)
    pixels = np.frombuffer(memory[:end], np.float32).reshape(3, *loader.plan.crop_size).copy()
    return pixels, bytes(memory[end : end + thumbnail_bytes])


def serve(control: int, loader: str) -> NoReturn:
    """Run the server: start workers until the run's end of the socket is closed.

    Args:
        control: the descriptor of the socket.
        loader: how pictures are loaded, as `to_json` writes it.
    """
    _Server(socket.socket(fileno=control), _from_json(loader)).run()


class _Server:
    def __init__(self, control: socket.socket, loader: PictureLoader) -> None:
        self._control = control
        self._loader = loader
        self._workers: dict[int, socket.socket] = {}  # by process
        self._poll = select.poll()
        self._dead, wake = os.pipe()
        for descriptor in (self._dead, wake):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poll.register(control, select.POLLIN)
        self._poll.register(self._dead, select.POLLIN)

    def run(self) -> NoReturn:
        self._control.send(REQUEST)  # it is ready
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._dead:
                    self._bury()
                    break  # descriptors may have been closed
                if descriptor == self._control.fileno():
                    self._start()
                else:
                    self._kill(descriptor)

    def _start(self) -> None:
        word, descriptors, _, _ = socket.recv_fds(self._control, MAX_WORD_BYTES, 2)
        if not word:  # the run has ended
            self._end()
        connection, shared = socket.socket(fileno=descriptors[0]), descriptors[1]
        process = os.fork()
        if not process:
            try:
                self._become_worker(connection, shared, int(word))
            finally:
                os._exit(1)
        os.close(shared)
        self._workers[process] = connection
        self._poll.register(connection, 0)  # told only of its end

    def _become_worker(self, connection: socket.socket, shared: int, memory_bytes: int) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in (self._control, *self._workers.values()):
            other.close()
        memory = mmap.mmap(shared, count_shared_bytes(self._loader))
        available = available_bytes()
        room_bytes = memory_bytes if available is None else min(memory_bytes, available)
        measures = confine(memory_bytes)
        if os.getppid() == 1:  # the server ended before `confine`
            return
        connection.send(_to_line({"measures": measures, "room_bytes": room_bytes}))
        work(connection, memory, self._loader)

    def _bury(self) -> None:
        """Say in the place of each worker that has died what it has died of."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._dead, MAX_LINE_BYTES)
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                connection = self._workers.pop(found[0])
                with contextlib.suppress(KeyError):
                    self._poll.unregister(connection)
                with contextlib.suppress(OSError):
                    connection.send(_to_line({"died": os.waitstatus_to_exitcode(found[1])}))
                connection.close()

    def _kill(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        for process, connection in self._workers.items():
            if connection.fileno() == descriptor:
                os.kill(process, signal.SIGKILL)

    def _end(self) -> NoReturn:
        for process in self._workers:
            os.kill(process, signal.SIGKILL)
        os._exit(0)


def work(connection: socket.socket, memory: mmap.mmap, loader: PictureLoader) -> None:
    """Run a worker: load one picture after another, until there are no more."""
    while True:
        word, descriptors, _, _ = socket.recv_fds(connection, len(REQUEST), 1)
        if not word:
            return
        with os.fdopen(descriptors[0], "rb") as file:
            connection.send(_to_line(_load(loader, file, memory)))


def _load(loader: PictureLoader, file: BufferedReader, memory: mmap.mmap) -> dict[str, Any]:
    """Load a picture, write its pixels into the shared memory, and return the rest of the answer."""
    file.seek(0)
    loaded: LoadedPicture | None = None
    with contextlib.suppress(MemoryError):
        loaded = loader.load(file)
    # here the exceptions are gone, whose tracebacks hold what was decoded so far
    if loaded is None:
        return {"is_short": True, "pixels": loader.count_pixels(file)}
    answer: dict[str, Any] = {"width": loaded.width, "height": loaded.height}
    if loaded.failure is not None:
        if loaded.failure.code in PERHAPS_FOR_MEMORY and is_short_of_memory(pixels := loader.count_pixels(file)):
            return {"is_short": True, "pixels": pixels}
        return answer | {"code": loaded.failure.code, "message": loaded.failure.message[: MAX_LINE_BYTES // 16]}
    assert loaded.pixels is not None  # it has not failed
    answer["spare_s"] = loaded.spare_s
    memory.seek(0)
    memory.write(loaded.pixels.data)
    if loaded.thumbnail is not None:
        memory.write(loaded.thumbnail.tobytes())
        answer["thumbnail"] = loaded.thumbnail.size
    return answer


def _to_line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"
