"""mf predict --ray: the parts are those of a run without Ray, whatever is killed meanwhile."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import AFTER_CTRL_C, CHECKOUT, Ran

pytest.importorskip("ray.data")
pytestmark = pytest.mark.slow
Mf = Callable[..., Ran]
SHARDS, SHARD_SIZE = 12, 40
COMMAND = ["predict", "--plan", "plan", "-o", "out", "--ray", "local"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder; Ray's is in another, since sockets must have short names."""
    monkeypatch.chdir(tmp_path)
    with tempfile.TemporaryDirectory() as short:
        monkeypatch.setenv("RAY_TMPDIR", short)
        yield tmp_path


def wait_for_end_of_ray() -> None:
    """Fail if a process that has the variable lives on: Ray's own, actors, and what decodes for them."""
    variable = f"RAY_TMPDIR={os.environ['RAY_TMPDIR']}\0".encode()
    deadline = time.monotonic() + 20
    while found := [path for path in Path("/proc").glob("[0-9]*/environ") if variable in read(path)]:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def read(path: Path) -> bytes:
    with contextlib.suppress(OSError):  # it has ended
        if path.parent.name != str(os.getpid()):
            return path.read_bytes()
    return b""


def test_a_local_ray_that_is_interrupted_goes_on(mf: Mf, mf_process: Mf, folder: Path) -> None:
    shutil.copytree(CHECKOUT / "examples", "photos")
    Path("photos/broken.jpg").write_text("no picture")
    names = sorted(map(str, Path("photos").glob("*.jpg"))) * (SHARDS * SHARD_SIZE)
    Path("names").write_text("\n".join(names[: SHARDS * SHARD_SIZE]))
    assert mf("plan", "--files-from", "names", "-o", "plan", "--shard-size", f"{SHARD_SIZE}", "-q").code == 0
    out, command = folder / "out", [sys.executable, "-m", "mfcli", *COMMAND, "-q"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0)
    deadline = time.monotonic() + 120
    while len(list(out.glob("part-*"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode in AFTER_CTRL_C
    done = len(list(out.glob("part-*")))
    assert 2 <= done < SHARDS
    assert not list(out.glob(".*"))
    wait_for_end_of_ray()
    ran = mf_process(*COMMAND)
    assert (ran.code, ran.out) == (5, "")
    notes = ran.err.splitlines()
    assert len(notes) == (SHARDS - done) + 1, notes  # about each part, and all of them
    assert all(note.startswith("note: ") for note in notes)
    assert mf("plan", "finish", "plan", "out").code == 0
    parts = "".join(path.read_text() for path in sorted(out.glob("part-*")))
    assert parts == mf("predict", "--files-from", "names", "--format", "jsonl").out
    ran = mf_process(*COMMAND, "-k", "2")
    difference = "--top-k 5 instead of --top-k 2"
    assert (ran.code, ran.err.splitlines()[0]) == (8, f"error: out has parts of another run: {difference}")


@pytest.mark.usefixtures("folder")
def test_a_cluster_without_room(mf: Mf, mf_process: Mf) -> None:
    shutil.copy(next((CHECKOUT / "examples").glob("*.jpg")), "a.jpg")
    assert mf("plan", "a.jpg", "-o", "plan", "-q").code == 0
    ran = mf_process(*COMMAND, "--threads", "9999", "--ray-timeout", "1")
    assert (ran.code, ran.err.splitlines()) == (
        7,
        [
            "error: no machine of the Ray cluster had 9999 cores free for 1 s",
            "hint: ray status; --ray-timeout S waits longer, --threads N takes fewer cores",
        ],
    )


@pytest.mark.usefixtures("folder")
def test_no_shards_at_all(mf: Mf) -> None:
    shutil.copy(next((CHECKOUT / "examples").glob("*.jpg")), "a.jpg")
    assert mf("plan", "a.jpg", "-o", "plan", "-q").code == 0
    ran = mf(*COMMAND, "--shard", "7/8")
    assert (ran.code, ran.err.splitlines()) == (0, ["note: 0 pictures: 0 classified; out"])


@pytest.mark.usefixtures("folder")
def test_workers_and_nodes_that_are_killed() -> None:
    script = CHECKOUT / "benchmarks" / "on_ray.py"
    command = [sys.executable, str(script), "kills", "--inputs", "1200", "--workers", "3", "--nodes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "merged = single run: True" in done.stdout
    assert "left behind: []" in done.stdout
