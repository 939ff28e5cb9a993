"""Fuzz targets take their seeds and mutations of them, the harness says what it finds; healthy and cut pictures."""

import io
import os
import random
import subprocess
import sys

import pytest
from PIL import Image

from conftest import CHECKOUT
from damage import DAMAGED, close, fill
from deterministic import picture
from mfcli.errors import PictureError
from mfcli.inputs.decode import decode
from run import mutate
from targets import TARGETS, list_seeds, run_target
from writers import write


@pytest.mark.parametrize("target", TARGETS)
def test_targets_survive_mutations(target: str) -> None:
    seeds, chance = list_seeds(target), random.Random(7)
    assert seeds
    for data in [*seeds, *(mutate(chance.choice(seeds), chance.choice(seeds), chance) for _ in range(50))]:
        run_target(target, data)


def test_files_of_every_writer_in_pillow_are_decoded() -> None:
    writers = set()
    for writer, data in write(picture(48, 32), lambda writer: writer.startswith("Pillow")):
        assert decode(io.BytesIO(data)).width == 48, writer
        writers.add(writer)
    assert len(writers) > 100


@pytest.mark.parametrize("writer", [name for name in DAMAGED if name.startswith("Pillow") and "'jpeg'" not in name])
def test_damaged_files_are_refused(writer: str) -> None:
    smooth = picture(60, 40).resize((300, 200), Image.Resampling.BICUBIC)
    for _, data in write(smooth, lambda name: name == writer):
        assert decode(io.BytesIO(data)).width == 300
        for damage in (close, fill):
            with pytest.raises(PictureError):
                decode(io.BytesIO(damage(data, len(data) // 2)))


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
