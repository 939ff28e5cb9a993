"""Fixtures: a network guard, a cache for each test, generated weights, and trial data where available."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from mfcli.cli import main
from object_store import store, store_server  # noqa: F401 - fixtures

CHECKOUT = Path(__file__).parent.parent
TRIAL_DATA = Path(os.environ.get("MFCLI_TRIAL_DATA", CHECKOUT.parent / "shared"))
"""Pictures and reference values for some tests, which are skipped without them."""

AFTER_CTRL_C = (130, -signal.SIGINT)
"""Exit status of a child process after SIGINT: it ends by the signal if the tests run in a terminal's foreground."""

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads cost more than they save on networks this small

# how fast a machine is, and what else it does, is not what the tests are about
settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")


@dataclass(frozen=True)
class Ran:
    """The result of a command."""

    code: int
    out: str
    err: str


def only_threads(number: int, monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Let only `number` threads start, as a limit on processes does; return those that started."""
    start: Callable[[threading.Thread], None] = threading.Thread.start
    started: list[threading.Thread] = []

    def limited(thread: threading.Thread) -> None:
        if len(started) == number:
            raise RuntimeError("can't start new thread")
        start(thread)
        started.append(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    return started


@pytest.fixture(autouse=True, scope="session")
def default_signals() -> None:
    """Restore signals that nohup or a background job ignores: child processes would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that connects to another machine or looks up a name."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):  # type: ignore[index]
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)  # type: ignore[arg-type]

    look_up = socket.getaddrinfo

    def guarded_look_up(host: object, *arguments: object, **options: object) -> object:
        if host not in (None, "127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to look up {host!r}")
        return look_up(host, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # for child processes: nothing listens there


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Use an empty cache and none of the user's settings."""
    for name in [name for name in os.environ if name.startswith("MF_")]:
        monkeypatch.delenv(name)
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MF_CACHE_DIR", str(cache))
    return cache


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Undo what the torch engine sets for the whole process."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture
def mf(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Return a function that runs a command line in this process."""

    def run(*arguments: str | Path) -> Ran:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def mf_process() -> Callable[..., Ran]:
    """Return a function that runs a command line in a new process."""

    def run(*arguments: str | Path | bytes, stdin: bytes = b"", **environment: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "mfcli", *arguments],
            input=stdin,
            capture_output=True,
            env=os.environ | environment,
            timeout=300,
            check=False,
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def mf_terminal(tmp_path: Path) -> Callable[..., Ran]:
    """Return a function that runs a command line with a terminal of 100 columns as stderr.

    Its stdout goes into a file, directly or through a pipe, or to the terminal as well.
    """

    def run(*arguments: str | Path, to: str = "file", meanwhile: Callable[[], object] = lambda: None) -> Ran:
        import pty

        controller, terminal = pty.openpty()
        out = tmp_path / "stdout"
        shown = b""
        with (
            out.open("wb") as file,
            subprocess.Popen("cat", stdin=subprocess.PIPE, stdout=file) as reader,
            subprocess.Popen(
                [sys.executable, "-m", "mfcli", *arguments],
                stdout={"file": file, "pipe": reader.stdin, "terminal": terminal}[to],
                stderr=terminal,
                env=os.environ | {"COLUMNS": "100", "TERM": "xterm"},
            ) as process,
        ):
            os.close(terminal)
            reader.stdin.close()  # type: ignore[union-attr]  # it is a pipe
            meanwhile()
            with contextlib.suppress(OSError):  # at its end
                while read := os.read(controller, 65536):
                    shown += read
            code = process.wait(60)
        os.close(controller)
        return Ran(code, out.read_text(), shown.decode())

    return run


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated checkpoint of the smallest architecture, in the paper's layout, with a head of 7 classes."""
    import torch

    from deterministic import fill
    from mfcli import create_model

    path = tmp_path_factory.mktemp("weights") / "seven.pth"
    torch.save(fill(create_model("bundled", num_classes=7)).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def coffee(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real photo of a cup of espresso, from scikit-image."""
    from PIL import Image
    from skimage import data

    path = tmp_path_factory.mktemp("photos") / "coffee.jpg"
    Image.fromarray(data.coffee()).save(path, quality=90)
    return path


@pytest.fixture
def trial_photos() -> Path:
    """The folder of ImageNet trial pictures with labels.csv; skips if it is absent."""
    folder = TRIAL_DATA / "data" / "photos"
    if not folder.is_dir():
        pytest.skip("no trial photos")
    return folder
