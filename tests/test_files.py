"""File primitives: cached digests, atomic writes, errors of the cache."""

import errno
import json
import os
from pathlib import Path

import pytest

from mfcli import files
from mfcli.errors import ModelError
from mfcli.files import cached_sha256, sha256_of, write_atomically

HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def test_a_digest_is_cached_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, index = tmp_path / "w.pth", tmp_path / "index"
    path.write_bytes(b"hello")
    assert cached_sha256(path, index) == HELLO
    with monkeypatch.context() as patch:
        patch.setattr(files, "sha256_of", lambda _: pytest.fail("hashed again"))
        assert cached_sha256(path, index) == HELLO
    status = path.stat()
    path.write_bytes(b"HELLO")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time
    assert cached_sha256(path, index) == sha256_of(path) != HELLO


def test_the_hint_for_an_unwritable_cache_depends_on_the_cause(tmp_path: Path) -> None:
    full = files.cache_write_error(tmp_path, OSError(errno.ENOSPC, "No space left on device"))
    assert (full.message, full.hint) == (
        f"cannot write to the cache {tmp_path}: No space left on device",
        "free some space (mf cache rm MODEL), or name another folder: MF_CACHE_DIR=DIR",
    )
    assert files.cache_write_error(tmp_path, PermissionError(13, "x")).hint == "name another folder: MF_CACHE_DIR=DIR"


def test_a_damaged_index_entry_is_ignored(tmp_path: Path) -> None:
    path, index = tmp_path / "w.pth", tmp_path / "index"
    path.write_bytes(b"hello")
    cached_sha256(path, index)
    (entry,) = index.iterdir()
    for damage in ("", "[]", json.dumps({"identity": None})):
        entry.write_text(damage)
        assert cached_sha256(path, index) == HELLO


def test_an_unwritable_index_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"hello")
    assert cached_sha256(path, path / "index") == HELLO


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read weights from .*: No such file"):
        cached_sha256(tmp_path / "none.pth", tmp_path)
    with pytest.raises(ModelError, match="cannot read weights from .*: No such file"):
        sha256_of(tmp_path / "none.pth")
    with pytest.raises(ModelError, match="is not a regular file") as caught:
        cached_sha256(tmp_path, tmp_path)
    assert caught.value.hint == "expected a .pth or .safetensors file"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.json"]
