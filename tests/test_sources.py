"""Sources: names as given, and codes for what cannot be opened."""

import io
import os
from pathlib import Path

import pytest

from mfcli.errors import FailureCode, NoInputsError, PictureError, UsageError
from mfcli.sources import Source, from_arguments


def code_of(source: Source) -> FailureCode:
    with pytest.raises(PictureError) as caught:
        source.open()
    return caught.value.code


def test_order_and_names_are_kept() -> None:
    sources = list(from_arguments(["b.jpg", "./a.jpg", "-", "b.jpg"], io.BytesIO(b"bytes")))
    assert [source.input for source in sources] == ["b.jpg", "./a.jpg", "-", "b.jpg"]
    assert [source.input_b64 for source in sources] == [None] * 4
    assert sources[2].open().read() == b"bytes"


def test_a_name_that_is_not_utf8() -> None:
    source = Source(os.fsdecode(b"caf\xe9.jpg"))
    assert source.input == "caf\ufffd.jpg"
    assert source.input_b64 == "Y2Fm6S5qcGc="


def test_no_inputs() -> None:
    with pytest.raises(NoInputsError):
        from_arguments([], io.BytesIO())


def test_standard_input_twice() -> None:
    with pytest.raises(UsageError, match="can be given once"):
        from_arguments(["-", "-"], io.BytesIO())


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert code_of(Source(str(tmp_path / "none.jpg"))) is FailureCode.NOT_FOUND
    assert code_of(Source(str(tmp_path / "file" / "x.jpg"))) is FailureCode.NOT_FOUND
    assert code_of(Source(str(tmp_path / "dangling"))) is FailureCode.NOT_FOUND
    assert code_of(Source(str(tmp_path / "loop"))) is FailureCode.NOT_FOUND
    assert code_of(Source("a\0b")) is FailureCode.NOT_FOUND
    assert code_of(Source("x" * 5000)) is FailureCode.NOT_FOUND
    assert code_of(Source(str(tmp_path))) is FailureCode.UNSUPPORTED
    assert code_of(Source(str(tmp_path / "fifo"))) is FailureCode.UNSUPPORTED
    assert code_of(Source("/dev/null")) is FailureCode.UNSUPPORTED


def test_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(b"x")
    if os.geteuid() == 0:  # root may read everything: let the system call say no

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    else:
        path.chmod(0)
    assert code_of(Source(str(path))) is FailureCode.PERMISSION
