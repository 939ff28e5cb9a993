"""Damaged folders of mf train are refused."""

import os
from pathlib import Path

import pytest

from mfcli.errors import ModelError
from mfcli.models.own import read_own_variant


@pytest.mark.parametrize(
    "arguments",
    [
        "[" * 10**5,
        "[]",
        '{"name": "pets", "base": "convformer_s18", "num_classes": 1e999}',
        '{"name": "pets", "base": "convformer_s18", "num_classes": 0}',
    ],
    ids=["nested", "list", "infinite", "none"],
)
def test_damaged_arguments_are_refused(arguments: str, tmp_path: Path) -> None:
    (tmp_path / "args.json").write_text(arguments)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ModelError, match=r"args\.json is damaged"):
        read_own_variant(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "args.json")
    with pytest.raises(ModelError, match=r"args\.json: not a regular file"):
        read_own_variant(tmp_path)
