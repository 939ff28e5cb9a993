"""What an argument of the command line is: a file, a folder, a glob, an archive, a member of one, a URL, or a list.

A Parquet file is an archive whose members are its rows.

Only names and file types are looked at; nothing is opened. How the pictures are found is sources.py's business.
"""

import os
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import PurePosixPath

from mfcli.files import is_glob, is_url
from mfcli.inputs.codecs import ALL_SUFFIXES
from mfcli.store_urls import is_store_url, split_store_url

STDIN = "-"
"""The argument that stands for the bytes of one picture on standard input."""

_PARQUET_SUFFIX = ".parquet"
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", _PARQUET_SUFFIX)
"""Matched regardless of case."""


class ArgumentKind(Enum):
    """The kinds of arguments, each with its own way to the pictures."""

    FILE = auto()
    """Also a name that does not exist, which fails when it is opened."""
    FOLDER = auto()
    GLOB = auto()
    ARCHIVE = auto()
    MEMBER = auto()
    """A picture or a folder in an archive, or a glob over its members."""
    URL = auto()
    OBJECT = auto()
    """In a store: a prefix as a folder, or else an object whose name lacks the suffix of a picture."""
    STDIN = auto()
    LIST = auto()
    """A regular file that lists further arguments."""
    PIPED_LIST = auto()
    """A list on standard input or in a named pipe, which can be read only once."""


_MANY = {
    ArgumentKind.FOLDER,
    ArgumentKind.OBJECT,
    ArgumentKind.GLOB,
    ArgumentKind.ARCHIVE,
    ArgumentKind.LIST,
    ArgumentKind.PIPED_LIST,
}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument and what it is.

    Attributes:
        name: as given.
        kind: what it was when it was classified.
        archive: the path of the archive, for an archive or a member of one; else empty.
        member: the path inside the archive, for a member; else empty.
    """

    name: str
    kind: ArgumentKind
    archive: str = ""
    member: str = ""

    @property
    def is_many(self) -> bool:
        """Whether it may stand for many pictures; the name of an archive does, whether the file exists or not."""
        if self.kind is ArgumentKind.MEMBER and not is_parquet_name(self.archive):
            return is_glob(self.member) or PurePosixPath(self.member).suffix.lower() not in ALL_SUFFIXES
        return self.kind in _MANY or (self.kind is ArgumentKind.FILE and _names_archive(self.name))

    @property
    def is_countable(self) -> bool:
        """Whether its pictures can be counted ahead of the run: not through a pipe, nor in a tar or a store."""
        if is_store_url(self.name) and self.kind is not ArgumentKind.URL:
            return False
        if self.kind in (ArgumentKind.LIST, ArgumentKind.PIPED_LIST):
            return self.kind is ArgumentKind.LIST
        name = self.name.rstrip("/")
        return not is_archive_name(name) or name.lower().endswith(".zip") or is_parquet_name(name)


def classify(name: str, *, is_listed: bool = False) -> Argument:
    """Return what an argument is; one that matches nothing else is a file.

    Args:
        name: as given; undecodable bytes are surrogate escapes.
        is_listed: whether it is a line of a list, or was matched by a glob; then it is neither a glob nor standard
            input.
    """
    if name == STDIN and not is_listed:
        return Argument(name, ArgumentKind.STDIN)
    if is_store_url(name):
        return _classify_object(name, is_listed)
    if is_url(name):
        return Argument(name, ArgumentKind.URL)
    if os.path.isdir(name):
        return Argument(name, ArgumentKind.FOLDER)
    path = name.rstrip("/")
    if is_archive_name(path) and os.path.isfile(path):
        return Argument(name, ArgumentKind.ARCHIVE, path)
    if (split := split_member(name)) is not None:
        return Argument(name, ArgumentKind.MEMBER, *split)
    if is_glob(name) and not is_listed and not os.path.lexists(name):
        return Argument(name, ArgumentKind.GLOB)
    return Argument(name, ArgumentKind.FILE)


def _classify_object(url: str, is_listed: bool) -> Argument:
    """Return what an object or a prefix is by its name alone."""
    bucket, key = split_store_url(url)
    path = url.rstrip("/")
    if is_archive_name(path):
        return Argument(url, ArgumentKind.ARCHIVE, path)
    parts = key.split("/")
    for at in range(1, len(parts)):
        if is_archive_name(parts[at - 1]) and (member := "/".join(parts[at:]).strip("/")):
            return Argument(url, ArgumentKind.MEMBER, bucket + "/".join(parts[:at]), member)
    if is_glob(key) and not is_listed:
        return Argument(url, ArgumentKind.GLOB)
    if key in ("", "/") or key.endswith("/"):
        return Argument(url, ArgumentKind.FOLDER)
    is_picture = is_listed or PurePosixPath(key).suffix.lower() in ALL_SUFFIXES
    return Argument(url, ArgumentKind.URL if is_picture else ArgumentKind.OBJECT)


def classify_list(name: str) -> Argument:
    """Return what a list of arguments is; `-` is standard input."""
    is_regular = name != STDIN and os.path.isfile(name)
    return Argument(name, ArgumentKind.LIST if is_regular else ArgumentKind.PIPED_LIST)


def is_input_name(name: str) -> bool:
    """Whether a file of this name would be taken for a picture or an archive; Parquet may be results as well."""
    is_input = PurePosixPath(name).suffix.lower() in ALL_SUFFIXES or is_archive_name(name)
    return is_input and not is_parquet_name(name)


def is_archive_name(path: str) -> bool:
    """Whether a file of this name is opened as an archive when it is named."""
    return path.lower().endswith(ARCHIVE_SUFFIXES)


def is_parquet_name(path: str) -> bool:
    """Whether a file of this name is opened as a Parquet file."""
    return path.lower().endswith(_PARQUET_SUFFIX)


def _names_archive(name: str) -> bool:
    return is_archive_name(name.rstrip("/"))


def split_member(path: str) -> tuple[str, str] | None:
    """Return archive and member of a path that goes on below an archive (`photos.zip/a.jpg`), else None."""
    at = path.find("/", 1)
    while at > 0:
        if is_archive_name(path[:at]) and os.path.isfile(path[:at]) and path[at:].strip("/"):
            return path[:at], path[at:].strip("/")
        at = path.find("/", at + 1)
    return None
