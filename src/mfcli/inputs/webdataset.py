"""Tars as WebDataset writes them: the files of a sample follow one another, with one name and several suffixes.

Such a tar is an archive like any other, whose pictures keep their names. What is beside a picture (`0001.cls`,
`0001.json`) is read only where rows keep it, by its suffix; `__key__` is the name without suffix.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from mfcli.inputs.members import Member, relative_name
from mfcli.inputs.selection import Selection
from mfcli.inputs.tar_archive import iter_tar

_KEY = "__key__"
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)
_MAX_PICTURES = 16
"""Pictures of one sample that wait, in memory, for what follows them."""
_MAX_BYTES = 2**20
"""The largest file beside a picture."""


def iter_samples(file: BinaryIO, takes: Callable[[str], bool], selection: Selection) -> Iterator[Member]:
    """Yield the wanted members of a tar, with what they keep of their samples; see `iter_tar`."""
    waiting: list[Member] = []
    key: str | None = None
    kept: dict[str, Any] = {}

    def is_beside(name: str) -> bool:
        suffix = _split(name)[1]
        return suffix in selection.keep and f".{suffix}" not in selection.suffixes

    def release() -> Iterator[Member]:
        row = {name: kept.get(name) for name in selection.keep}
        yield from (replace(member, kept=row) for member in waiting)
        waiting.clear()

    try:
        for member in iter_tar(file, lambda name: is_beside(name) or takes(name), selection.max_bytes):
            name = relative_name(member.name or "")
            sample, suffix = _split(name)
            if sample != key or len(waiting) == _MAX_PICTURES:
                yield from release()
            if sample != key:
                key, kept = sample, {_KEY: sample}
            if is_beside(name):
                kept[suffix] = _read(member, suffix)
            else:
                waiting.append(member)
    except Exception:  # the tar is damaged behind these
        yield from release()
        raise
    yield from release()


def _split(name: str) -> tuple[str, str]:
    """Return the name of a sample, up to the first dot of a file's name, and the suffix behind it."""
    found = _NAME.fullmatch(name)
    return (found[1], found[2].lower()) if found else (name, "")


def _read(member: Member, suffix: str) -> Any:
    """Return what a file says: the value of JSON, else text without line ends; None where it cannot be read."""
    if member.opener is None:
        return None
    data = member.opener().read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        return None
    try:
        return json.loads(data) if suffix == "json" else data.decode().strip()
    except (ValueError, RecursionError):  # UnicodeError is a ValueError
        return None
