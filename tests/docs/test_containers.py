"""What docs/how-to/containers.md says of read-only containers, as far as it can be tried without Docker."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

READ_ONLY = ["unshare", "--mount", "--map-root-user", "sh", "-c", 'mount -o remount,ro,bind / && exec "$@"', "sh"]
PROGRAM = [*READ_ONLY, sys.executable, "-m", "mfcli"]


@pytest.fixture
def read_only(tmp_path: Path) -> None:
    """Skip where a process cannot be given a file system of its own, or temporary files are on another one."""
    try:
        refused = subprocess.run(
            [*READ_ONLY, "touch", str(tmp_path / "x")], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if "Read-only file system" not in refused.stderr:
        pytest.skip("cannot make the file system read-only")


@pytest.mark.usefixtures("read_only")
def test_nothing_is_written_for_a_prediction(coffee: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MF_CACHE_DIR"}
    command = [*PROGRAM, "predict", ".", "--offline", "-q", "--format", "jsonl"]
    done = subprocess.run(
        command, cwd=coffee.parent, env=environment | {"HOME": "/nonexistent"}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["predictions"][0]["label"] == "espresso"


@pytest.mark.slow
@pytest.mark.usefixtures("read_only")
def test_a_prepared_model_needs_no_writable_cache(coffee: Path, small_weights: Path) -> None:
    arguments = ["predict", str(coffee), "-m", "bundled", "--weights", str(small_weights), "--format", "jsonl"]
    unprepared = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert (unprepared.returncode, "Read-only file system" in unprepared.stderr) == (8, True)
    subprocess.run([sys.executable, "-m", "mfcli", *arguments], capture_output=True, check=True)
    assert subprocess.run([*PROGRAM, *arguments], capture_output=True, check=False).returncode == 0
