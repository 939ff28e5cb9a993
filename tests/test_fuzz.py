"""The fuzz targets take their seeds and mutations of them, and the harness says what it finds."""

import os
import random
import subprocess
import sys

import pytest

from conftest import CHECKOUT
from run import mutate
from targets import TARGETS, list_seeds, run_target


@pytest.mark.parametrize("target", TARGETS)
def test_targets_survive_mutations(target: str) -> None:
    seeds, chance = list_seeds(target), random.Random(7)
    assert seeds
    for data in [*seeds, *(mutate(chance.choice(seeds), chance.choice(seeds), chance) for _ in range(50))]:
        run_target(target, data)


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["raise IndexError", "import time; time.sleep(60)", "import os; os.abort()"])
def test_the_harness_says_what_it_finds(bug: str, tmp_path: "os.PathLike[str]") -> None:
    program = f"""import sys, run, targets, pathlib
def plant(data):
    if len(data) != 197: {bug}
targets.TARGETS["lock_file"] = plant
run.MAX_SECONDS, run.FOUND = 1, pathlib.Path({str(tmp_path)!r})
run.__file__ = __file__
sys.exit(run.main())
"""
    script = os.path.join(tmp_path, "planted.py")
    with open(script, "w") as file:
        file.write(program)
    command = [sys.executable, script, "lock_file", "--seconds", "5", "--seed", "1", "--random"]
    paths = os.pathsep.join([str(CHECKOUT / "fuzz"), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=False)
    assert ran.returncode == 1
    assert "lock_file: FOUND" in ran.stdout
    assert os.path.getsize(os.path.join(tmp_path, "lock_file-1")) != 197
