"""A user's script is checked by mypy, strict, against the public names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import CHECKOUT
from documents import fenced

CONFIG = """
[mypy]
strict = true
follow_imports = silent
[mypy-torch.*,timm.*,onnxruntime.*]
follow_imports = skip
"""
SCRIPT = """
from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import numpy as np
from PIL import Image

import mfcli

predictor = mfcli.load_predictor("bundled", labels=["cat", mfcli.Label(None, "dog")])
array = np.zeros((4, 4, 3), np.uint8)
paths: Iterator[Path] = iter([Path("a.jpg")])
result = predictor.predict("a.jpg")
assert_type(predictor, mfcli.Predictor)
assert_type(result, mfcli.PictureResult)
assert_type(predictor.predict(Path("a.jpg")), mfcli.PictureResult)
assert_type(predictor.predict(b""), mfcli.PictureResult)
assert_type(predictor.predict(array), mfcli.PictureResult)
assert_type(predictor.predict(Image.new("L", (1, 1))), mfcli.PictureResult)
assert_type(predictor.predict(["a.jpg", b"", array]), list[mfcli.PictureResult])
assert_type(predictor.predict(paths), list[mfcli.PictureResult])
assert_type(predictor.stream(mfcli.iter_sources(["photos"])), Iterator[mfcli.PictureResult])
predictor.predict(7)  # type: ignore[call-overload]
assert_type(result.prob, float | None)
if result.error:
    assert_type(result.error.code, mfcli.FailureCode)
"""


@pytest.mark.slow
def test_a_users_script_is_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    blocks = fenced((CHECKOUT / "docs" / "how-to" / "python.md").read_text(), "python")
    scripts = [SCRIPT, *(block for block in blocks if not any(name in block for name in ("pandas", "flask", "cv2")))]
    for number, script in enumerate(scripts):
        (tmp_path / f"script_{number}.py").write_text(script)
    (tmp_path / "mypy.ini").write_text(CONFIG)
    environment = os.environ | {"MYPYPATH": str(CHECKOUT / "src")}
    command = [sys.executable, "-m", "mypy", *(f"script_{number}.py" for number in range(len(scripts)))]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
