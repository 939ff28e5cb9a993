"""Loading pictures in processes of their own, so that a picture costs no more than its row.

A picture that takes too much time or memory, or crashes its decoder, ends a worker process, which is replaced. What the
processes are held to is in sandbox.py, what they do in decode_worker.py. Their answers are not trusted.
"""

import contextlib
import fcntl
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from io import BufferedRandom, BufferedReader
from typing import Any, BinaryIO

from PIL import Image

from mfcli.errors import FailureCode, escape_control_characters
from mfcli.inference.decode_worker import (
    MAX_LINE_BYTES,
    REQUEST,
    count_shared_bytes,
    read_shared,
    to_json,
)
from mfcli.inference.loading import (
    BYTES_PER_PIXEL,
    DOES_NOT_FIT,
    ORDINARY_BYTES,
    IsolationError,
    LoadedPicture,
    OutOfMemoryError,
    PictureLoader,
    make_timeout,
)
from mfcli.inference.sandbox import Measure
from mfcli.memory import available_bytes
from mfcli.results import Failure
from mfcli.settings import usable_cores

_START_S = 60.0
"""Time for a process to start, on a machine that is busy."""
_UNKNOWN_MEMORY = 2**34
_MAX_SHARE = 2**30
"""Memory for a picture that is not loaded alone."""
_ORDINARY_PIXELS = 2**24
"""More than most cameras take."""
_CRASHED = Failure(FailureCode.DECODE, "cannot be decoded: it crashes its decoder")
_NOT_INHERITED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that are meant for the run, which ends its processes itself."""


class DecoderPool:
    """Processes that load pictures, as many as are asked at once; they end with this object, or with the program."""

    def __init__(self, loader: PictureLoader, timeout_s: float) -> None:
        """Begin without a process.

        Args:
            loader: how pictures are loaded.
            timeout_s: the time that one may take.
        """
        self._loader, self._timeout_s = loader, timeout_s
        available = available_bytes()
        self._memory_bytes = _UNKNOWN_MEMORY if available is None else available // 2
        self._share_bytes = self._memory_bytes // usable_cores()
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._idle: list[_Worker] = []

    def start(self, workers: int) -> None:
        """Start the server, and do not wait for it.

        Args:
            workers: pictures that will be loaded at once, which share the memory.

        Raises:
            IsolationError: it cannot be started.
        """
        self._share_bytes = min(self._memory_bytes // workers, _MAX_SHARE)
        with self._lock:
            self._find_server()

    def find_measures(self) -> list[Measure]:
        """Start a process, and return what it is held to.

        Raises:
            IsolationError: none can be started.
        """
        with contextlib.closing(self._take_worker(alone=True)) as worker:
            return [measure for measure in Measure if measure in worker.measures]

    def load(self, file: BinaryIO, *, alone: bool = True) -> LoadedPicture:
        """Load a picture in a process; several threads may do so at once.

        Args:
            file: binary and seekable.
            alone: whether no other picture is being loaded, so that this one may take all of the memory.

        Raises:
            MemoryError: not alone, it does not fit into its share of the memory.
            OutOfMemoryError: alone, and an ordinary one does not fit.
            IsolationError: no process can be started.
        """
        with contextlib.ExitStack() as stack:
            given = file if isinstance(file, BufferedReader) else stack.enter_context(_share(file))
            for _ in range(2):  # a worker that was idle may have died with its server
                worker = self._take_worker(alone=alone)
                try:
                    return self._judge(self._ask(worker, given, keep=not alone), worker.room_bytes, alone=alone)
                except EOFError:
                    worker.server.close()
        return LoadedPicture(failure=_CRASHED)

    def _take_worker(self, *, alone: bool, again: bool = True) -> "_Worker":
        with self._lock:
            server = self._find_server()
            while self._idle:
                worker = self._idle.pop()
                if worker.server is server and not alone:
                    return worker
                worker.close()  # with a small limit, or its server has died
        try:
            return server.start_worker(self._loader, self._memory_bytes if alone else self._share_bytes)
        except (OSError, EOFError, ValueError) as error:
            if isinstance(error, EOFError | ConnectionError):
                server.close()
            if not again or server.is_usable():
                raise IsolationError(str(error)) from error
        return self._take_worker(alone=alone, again=False)

    def _find_server(self) -> "_Server":
        if self._server is None or not self._server.is_usable():
            try:
                self._server = _Server(self._loader)
            except (OSError, ValueError) as error:
                raise IsolationError(str(error)) from error
            weakref.finalize(self, self._server.close)
        return self._server

    def _ask(self, worker: "_Worker", file: BinaryIO, *, keep: bool) -> dict[str, Any]:
        """Return a worker's answer, and keep the worker for the next picture if it can go on.

        Raises:
            EOFError: its server has died.
        """
        answer: dict[str, Any] = {}
        try:
            answer = worker.ask(file, self._timeout_s)
        except TimeoutError:
            return {"is_late": True}
        except (OSError, TypeError, ValueError):  # nonsense
            return {"died": None}
        finally:
            if keep and "width" in answer:
                with self._lock:
                    self._idle.append(worker)
            else:
                worker.close()
        return answer

    def _judge(self, answer: dict[str, Any], room_bytes: int, *, alone: bool) -> LoadedPicture:
        """Return what the answer of a worker with this room means; whatever does not look like one is a crash."""
        if answer.get("is_short") is True or answer.get("died") == -signal.SIGKILL:  # the system does so for memory
            if not alone:
                raise MemoryError
            if _is_run_to_blame(answer.get("pixels"), room_bytes):
                raise OutOfMemoryError
            return LoadedPicture(failure=DOES_NOT_FIT)
        if answer.get("is_late") is True:
            return make_timeout(self._timeout_s)
        try:
            if "code" in answer:
                failure = Failure(FailureCode(answer["code"]), escape_control_characters(str(answer["message"])))
                width, height = (None if side is None else int(side) for side in (answer["width"], answer["height"]))
                return LoadedPicture(width, height, failure=failure)
            width, height, spare_s = int(answer["width"]), int(answer["height"]), float(answer["spare_s"])
            return LoadedPicture(width, height, answer["pixels"], answer["thumbnail"], spare_s=spare_s)
        except (KeyError, TypeError, ValueError):
            return LoadedPicture(failure=_CRASHED)


class _Server:
    """The process that starts workers."""

    def __init__(self, loader: PictureLoader) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started.
            ValueError: the program that runs is not Python's own.
        """
        if not sys.executable or getattr(sys, "frozen", False):
            raise ValueError("no interpreter is known")
        self._owner = os.getpid()
        self._control, theirs = socket.socketpair()
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; from mfcli.inference.decode_worker import serve; "
            f"serve({theirs.fileno()}, {to_json(loader)!r})"
        )
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_INHERITED)  # the process inherits it
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", program],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # a process that forks has no other threads
                )
        except BaseException:
            self._control.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._lock = threading.Lock()
        self._is_ready = False

    def is_usable(self) -> bool:
        """Return whether it runs, and was started by this process and not by one that forked it."""
        return self._owner == os.getpid() and self._process.poll() is None

    def start_worker(self, loader: PictureLoader, memory_bytes: int) -> "_Worker":
        """Start a worker.

        Raises:
            EOFError: the server ends.
            OSError: likewise, or there is no memory to share.
            ValueError: the server does not answer as it should.
        """
        with self._lock:
            if not self._is_ready:
                self._control.settimeout(_START_S)
                if self._control.recv(len(REQUEST)) != REQUEST:
                    raise EOFError
                self._is_ready = True
        ours, theirs = socket.socketpair()
        with theirs, _make_file(count_shared_bytes(loader)) as file:
            memory = mmap.mmap(file.fileno(), count_shared_bytes(loader))
            word = str(memory_bytes).encode()
            try:
                socket.send_fds(self._control, [word], [theirs.fileno(), file.fileno()])
                return _Worker(self, ours, memory, loader)
            except BaseException:
                ours.close()
                raise

    def close(self) -> None:
        """End the process and its workers."""
        self._control.close()
        if self._owner == os.getpid():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)


class _Worker:
    """A process that loads pictures, one at a time."""

    def __init__(self, server: _Server, connection: socket.socket, memory: mmap.mmap, loader: PictureLoader) -> None:
        """Wait until it has started, and has said what it is held to and how many bytes it may allocate.

        Raises:
            OSError: it does not.
            EOFError: its server ends.
            ValueError: it does not answer as it should.
        """
        self.server = server
        self._connection, self._memory, self._loader = connection, memory, loader
        greeting = self._read_answer(time.monotonic() + _START_S)
        self.measures = tuple(greeting.get("measures", ()))
        self.room_bytes = int(greeting.get("room_bytes", 0))

    def ask(self, file: BinaryIO, timeout_s: float) -> dict[str, Any]:
        """Return the answer about a picture, with its pixels and its thumbnail.

        Raises:
            TimeoutError: there is none in this time.
            EOFError: the server has died.
            OSError: the worker has ended.
            ValueError: the answer is not well-formed.
        """
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(BrokenPipeError):  # its server may have said what it died of
            socket.send_fds(self._connection, [REQUEST], [file.fileno()])
        answer = self._read_answer(deadline)
        if "width" in answer and "code" not in answer:
            width, height = answer.get("thumbnail") or (0, 0)
            if max(width, height) > (self._loader.thumbnail_side or 0):
                raise ValueError("a thumbnail is too large")
            pixels, thumbnail = read_shared(memoryview(self._memory), self._loader, 3 * width * height)
            answer["pixels"] = pixels
            answer["thumbnail"] = Image.frombytes("RGB", (width, height), thumbnail) if thumbnail else None
        return answer

    def _read_answer(self, deadline: float) -> dict[str, Any]:
        line = b""
        while not line.endswith(b"\n"):
            self._connection.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                read = self._connection.recv(MAX_LINE_BYTES)
            except ConnectionResetError:  # the server has died before the request was read
                read = b""
            if not read:
                raise EOFError
            line += read
            if len(line) > MAX_LINE_BYTES:
                raise ValueError("an answer is too long")
        try:
            answer = json.loads(line)
        except RecursionError as error:
            raise ValueError("an answer is nested too deep") from error
        if not isinstance(answer, dict):
            raise ValueError("an answer is not an object")
        return answer

    def close(self) -> None:
        """End it, whatever it does."""
        self._connection.close()


def _is_run_to_blame(pixels: object, room_bytes: int) -> bool:
    """Whether a picture that did not fit into this room would have, had there been memory for an ordinary one."""
    known = pixels if isinstance(pixels, int) and pixels <= _ORDINARY_PIXELS else 0
    return room_bytes < ORDINARY_BYTES + BYTES_PER_PIXEL * known


def _make_file(size_bytes: int) -> BufferedRandom:
    """Return a file in memory; where the system can see to it, its size cannot be changed by another process."""
    if not hasattr(os, "memfd_create"):  # macOS
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        os.truncate(file.fileno(), size_bytes)
        return file
    descriptor = os.memfd_create("mfcli", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(descriptor, size_bytes)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return os.fdopen(descriptor, "r+b")


def _share(file: BinaryIO) -> BufferedRandom:
    """Return a copy of a picture in memory that another process can read; the original is closed."""
    with file:
        data = file.read()
    shared = _make_file(len(data))
    shared.write(data)
    shared.flush()
    return shared
