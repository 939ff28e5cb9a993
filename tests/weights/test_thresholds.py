"""The script that says when the bundled model should abstain."""

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from conftest import CHECKOUT
from mfcli.hub.bundled import bundled_file

ORANGE, LEMON = "n07747607", "n07749582"


@pytest.fixture(scope="module")
def thresholds() -> Iterator[ModuleType]:
    pytest.importorskip("torchvision")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CHECKOUT / "weights"))
        yield importlib.import_module("thresholds")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, of whose pictures the first are held out: a right answer and a wrong one."""
    for wnid, names in ((ORANGE, ("orange", "lemon")), (LEMON, ("orange", "lemon"))):
        (tmp_path / wnid).mkdir()
        for number, name in enumerate(names):
            shutil.copy(CHECKOUT / "examples" / f"{name}.jpg", tmp_path / wnid / f"{number}.jpg")
    return tmp_path


def test_the_curve_is_written_beside_the_artifact(
    thresholds: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = {}
    monkeypatch.setattr(thresholds, "update_sidecar", lambda path, **changes: written.update({path: changes}))
    thresholds.main([str(folder), "--holdout", "1"])
    ((path, changes),) = written.items()
    assert path == bundled_file("convformer_t8_64.onnx")
    assert changes["thresholds"]["distance"] is None
    assert changes["thresholds"]["errors"][0][1] == pytest.approx(0.999, abs=1e-3)  # one right answer says little
    assert "at most 10% wrong: probability inf" in capsys.readouterr().out
    (folder / ORANGE / "0.jpg").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match="1 pictures failed"):
        thresholds.main([str(folder), "--holdout", "1"])


def test_the_shipped_curve_is_usable() -> None:
    sidecar = json.loads(bundled_file("convformer_t8_64.json").read_bytes())
    bounds = [bound for _, bound in sidecar["thresholds"]["errors"]]
    assert (bounds == sorted(bounds), bounds[0] < 0.05, bounds[-1] > 0.35) == (True, True, True)
