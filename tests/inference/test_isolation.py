"""One picture costs one row: processes that decode, what they are held to, and how they end."""

import contextlib
import mmap
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import mfcli
from conftest import AFTER_CTRL_C
from deterministic import picture
from mfcli.inference.isolation import _Worker
from mfcli.inference.predictor import Predictor
from mfcli.inputs.pictures import Picture
from mfcli.inputs.sources import iter_sources

LARGE_WEBP = bytes.fromhex(
    "5249464626000000574542505650384c190000002fc7f2b11c075081540820000a1a02495bbced8f8f88e87f0000"
)
"""46 bytes, 13,000 x 13,000 pixels, for which the decoder takes 4.6 GB."""


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A picture that takes half a minute to decode."""
    path = tmp_path / "slow.ppm"
    path.write_bytes(b"P6 4000 2000 1000\n")
    os.truncate(path, 18 + 4000 * 2000 * 6)
    return path


def children_of(process: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def workers_of(process: int) -> list[int]:
    """Return the processes that decode for a run, which are the children of its child."""
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{process}/task").iterdir()
        servers = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        return [worker for server in servers for worker in children_of(server)]
    return []


def wait_for(condition: Callable[[], object], timeout_s: float = 30) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_busy(process: int) -> bool:
    """Whether a process has used a fifth of a second of the processor since it was started."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]) > os.sysconf("SC_CLK_TCK") // 5


def codes(predictor: Predictor, pictures: list[Picture]) -> list[str | None]:
    return [result.error.code if result.error else None for result in predictor.stream(pictures, workers=2)]


def test_answers_are_those_of_this_process(coffee: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(coffee.read_bytes()[:1000])
    picture(9000, 1).save(tmp_path / "strip.png")
    array = np.asarray(picture(40, 30))
    pictures: list[Picture] = [
        coffee,
        tmp_path / "cut.jpg",
        tmp_path / "strip.png",
        tmp_path / "no.jpg",
        coffee.read_bytes(),
        array,
    ]
    here, isolated = (
        mfcli.load_predictor(isolate=isolate, thumbnail_side=64, max_pixels=10**6) for isolate in (False, True)
    )
    for ours, theirs in zip(here.predict(pictures * 5), isolated.predict(pictures * 5), strict=True):
        assert theirs.to_dict() == ours.to_dict()
        assert (theirs.thumbnail and theirs.thumbnail.tobytes()) == (ours.thumbnail and ours.thumbnail.tobytes())


def test_a_picture_over_the_deadline(coffee: Path, slow: Path) -> None:
    predictor = mfcli.load_predictor(decode_timeout_s=1, formats=["ppm"])
    assert codes(predictor, [coffee, slow, *[coffee] * 20]) == [None, "timeout", *[None] * 20]
    result = predictor.predict(slow)  # in this process
    assert result.error is not None
    assert result.error.message == "decoding takes longer than decode_timeout_s=1"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGSEGV, "decode"), (signal.SIGKILL, "too_large")])
def test_a_worker_that_is_killed_costs_one_row(coffee: Path, slow: Path, number: int, code: str) -> None:
    predictor = mfcli.load_predictor(formats=["ppm"])
    before = workers_of(os.getpid())

    def kill() -> None:
        killed = 0
        while killed < 1 + (number == signal.SIGKILL):  # what may be a lack of memory is tried again
            for worker in set(workers_of(os.getpid())) - set(before):
                with contextlib.suppress(OSError):
                    if is_busy(worker):
                        os.kill(worker, number)
                        killed += 1
            time.sleep(0.05)

    threading.Thread(target=kill, daemon=True).start()
    assert codes(predictor, [coffee, slow, *[coffee] * 20]) == [None, code, *[None] * 20]


def test_a_picture_that_takes_too_much_memory(coffee: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfcli.inference.isolation.available_bytes", lambda: 2**30)
    predictor = mfcli.load_predictor()
    result = predictor.predict(LARGE_WEBP)  # although it is single
    assert result.error == mfcli.Failure(mfcli.FailureCode.TOO_LARGE, "does not fit into memory")
    assert codes(predictor, [coffee, LARGE_WEBP, coffee]) == [None, "too_large", None]


def test_a_run_that_is_short_of_memory(coffee: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfcli.inference.isolation.available_bytes", lambda: 2**20)
    with pytest.raises(mfcli.EngineError, match=f"too little memory to decode {coffee}"):
        mfcli.load_predictor().predict([coffee])


def test_the_server_is_replaced(coffee: Path) -> None:
    predictor = mfcli.load_predictor()
    for _ in range(2):
        before = set(children_of(os.getpid()))
        assert codes(predictor, [coffee] * 3) == [None] * 3
        for server in set(children_of(os.getpid())) - before:
            os.kill(server, signal.SIGKILL)


def test_where_no_process_can_be_started(coffee: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert codes(mfcli.load_predictor(), [coffee] * 3) == [None] * 3


def test_members_of_archives_and_urls_are_decoded_elsewhere(
    coffee: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.write(coffee, "coffee.jpg")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("mfcli.inference.preparation.load_here", refuse)
    (member,) = iter_sources([str(tmp_path / "p.zip")])
    predictor = mfcli.load_predictor()
    assert predictor.predict(member).status == "ok"
    assert predictor.predict(coffee.as_uri()).status == "ok"
    with pytest.raises(AssertionError):
        predictor.predict(coffee)


@contextlib.contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "mfcli", "predict", "--formats", "ppm", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_no_process_is_left_after_a_kill(slow: Path) -> None:
    with running(slow.parent) as process:
        assert wait_for(lambda: any(map(is_busy, workers_of(process.pid))))
        found = workers_of(process.pid)
        process.kill()
        assert wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in found), 5)


@pytest.mark.parametrize("is_single", [True, False])
def test_ctrl_c_ends_at_once(slow: Path, is_single: bool) -> None:
    with running(slow if is_single else slow.parent) as process:
        busy = (lambda: is_busy_after_start(process.pid)) if is_single else (lambda: workers_of(process.pid))
        assert wait_for(busy)
        time.sleep(0.5)
        found = workers_of(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) in AFTER_CTRL_C
        assert b"Traceback" not in process.communicate()[1]
        assert wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in found), 5)


def is_busy_after_start(process: int) -> bool:
    """Whether a run decodes, in a thread that is named so."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) > 2 * os.sysconf("SC_CLK_TCK")
    return False


def test_a_program_without_a_guard(coffee: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"import mfcli\nprint([r.status for r in mfcli.load_predictor().predict([{str(coffee)!r}] * 3)])"
    )
    assert subprocess.check_output([sys.executable, program], text=True) == "['ok', 'ok', 'ok']\n"


def test_a_worker_can_neither_read_nor_write_nor_connect(tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    attempts = {
        "read": f"open({str(tmp_path / 'secret')!r})",
        "write": f"open({str(tmp_path / 'new')!r}, 'w')",
        "list": f"os.listdir({str(tmp_path)!r})",
        "start": "os.posix_spawn('/bin/true', ['true'], {})",
        "fork": "os.fork()",
        "connect": "socket.socket()",
        "kill": "os.kill(os.getppid(), 0)",
        "limit": "resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
        "allocate": "bytearray(2**28)",
        "thread": "threading.Thread(target=print).start()",
        "import": "__import__('PIL.ImageCms')",
        "abort": "signal.raise_signal(signal.SIGURG)",
        "know": "resource.getrlimit(resource.RLIMIT_CPU)",
    }
    program = (
        "import os, resource, signal, socket, sys, threading\nfrom mfcli.inference.sandbox import Measure, confine\n"
        "assert confine(2**27) == list(Measure)\n"
        f"for name, attempt in {attempts!r}.items():\n"
        "    try:\n        eval(attempt)\n        print(name)\n    except (OSError, MemoryError):\n        pass\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["thread", "import", "abort", "know"]
    assert done.stderr == ""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of the calls")
@pytest.mark.parametrize("call", ["234, run, run, 0", "129, run, 0, info", "297, run, run, 0, info"])
def test_signals_do_not_need_landlock_to_be_refused(call: str) -> None:
    program = (
        "import ctypes, errno, os\nfrom mfcli.inference import sandbox\n"
        "run, info = os.getppid(), bytes(8) + bytes([255] * 4) + bytes(116)\n"
        "sandbox._prctl(sandbox._PR_SET_NO_NEW_PRIVS, 1)\nsandbox._refuse_calls()\n"
        f"print(ctypes.CDLL(None, use_errno=True).syscall({call}), errno.errorcode[ctypes.get_errno()])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "-1 EPERM\n"


@pytest.mark.parametrize(
    "answer",
    ["[" * 60000, '{"width": 9, "height": 9, "spare_s": 0, "thumbnail": [60000, 60000]}'],
    ids=["deep", "large"],
)
def test_answers_are_not_trusted(answer: str, coffee: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, coffee.open("rb") as file, mmap.mmap(-1, 1) as memory:
        theirs.send(b'{"measures": []}\n')
        worker = _Worker(None, ours, memory, SimpleNamespace(thumbnail_side=20))  # type: ignore[arg-type]
        theirs.send(answer.encode() + b"\n")
        with pytest.raises(ValueError, match="an answer is nested too deep|a thumbnail is too large"):
            worker.ask(file, 20)


def test_a_server_that_dies_before_a_request_is_read_is_no_crash(coffee: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, coffee.open("rb") as file, mmap.mmap(-1, 1) as memory:
        with theirs:
            theirs.send(b'{"measures": []}\n')
            worker = _Worker(None, ours, memory, SimpleNamespace(thumbnail_side=20))  # type: ignore[arg-type]
            ours.send(b"unread")
        with pytest.raises(EOFError):
            worker.ask(file, 20)
