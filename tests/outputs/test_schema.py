"""The JSON contract: real rows of every kind agree with the schema that ships with the package."""

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from conftest import CHECKOUT, Ran
from mfcli.errors import FailureCode
from mfcli.inference.engines.base import EngineName, Precision
from mfcli.results import PREDICT_SCHEMA

SCHEMA: dict[str, Any] = json.loads((resources.files("mfcli.outputs") / "predict.schema.json").read_text())
ORANGE = CHECKOUT / "examples" / "orange.jpg"


@pytest.fixture
def row_validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """A picture, a missing file, one that is no picture, members of an archive, and a name that is not UTF-8."""
    (tmp_path / "text.jpg").write_text("not a picture")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(ORANGE, "inner/orange.jpg")
        archive.writestr("inner/text.png", b"not a picture")
    latin = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    with contextlib.suppress(OSError):  # the file systems of macOS refuse such names; then it is a missing file
        shutil.copy(ORANGE, latin)
    return [str(ORANGE), *(str(tmp_path / name) for name in ("missing.jpg", "text.jpg", "photos.zip")), latin]


def test_rows_agree_with_the_schema(
    mf: Callable[..., Ran], inputs: list[str], row_validator: jsonschema.Draft202012Validator
) -> None:
    rows = [json.loads(line) for line in mf("predict", *inputs, "--format", "jsonl").out.splitlines()]
    for row in rows:
        row_validator.validate(row)
    assert [row["member"] for row in rows] == [None, None, None, "inner/orange.jpg", "inner/text.png", None]
    assert [row["status"] for row in rows[:5]] == ["ok", "error", "error", "ok", "error"]
    assert [row["input_b64"] is None for row in rows] == [True] * 5 + [False]


def test_the_document_agrees_with_the_schema(mf: Callable[..., Ran], inputs: list[str]) -> None:
    document = json.loads(mf("predict", *inputs, "--format", "json").out)
    validator = jsonschema.Draft202012Validator({"$ref": "mf.predict/1#/$defs/document", "$defs": {"row": SCHEMA}})
    validator.validate(document)
    assert len(document["results"]) == document["summary"]["inputs"] == 6


@pytest.mark.parametrize(
    "change",
    [
        {"status": "error"},
        {"error": {"code": "decode", "message": "is not a picture"}},
        {"predictions": []},
        {"width": None},
        {"run": "short"},
        {"schema": "mf.predict/2"},
        {"more": 1},
    ],
)
def test_a_changed_row_does_not_agree(
    mf: Callable[..., Ran], row_validator: jsonschema.Draft202012Validator, change: dict[str, Any]
) -> None:
    row = json.loads(mf("predict", str(ORANGE), "--format", "jsonl").out)
    assert row_validator.is_valid(row)
    assert not row_validator.is_valid(row | change)


def test_the_schema_has_the_codes_and_names_of_the_program() -> None:
    definitions = SCHEMA["$defs"]
    run = definitions["document"]["properties"]["run"]["properties"]
    assert SCHEMA["properties"]["schema"]["const"] == PREDICT_SCHEMA
    assert definitions["error"]["properties"]["code"]["enum"] == list(FailureCode)
    assert run["engine"]["enum"] == [*(name for name in EngineName if name is not EngineName.AUTO), None]
    assert run["precision"]["enum"] == [*Precision, None]
