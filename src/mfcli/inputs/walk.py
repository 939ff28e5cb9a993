"""Opens local files safely, and walks folders and globs lazily.

One folder is listed at a time, when its turn comes, so that the first picture of a large tree comes at once; no file is
examined before it is opened. A folder that links lead to by many ways is walked once, and /proc and /sys are not.
"""

import functools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

from mfcli.errors import FailureCode, PictureError
from mfcli.files import NotRegularError, is_glob, open_regular
from mfcli.inputs.selection import Selection, compile_glob, is_hidden, sort_naturally
from mfcli.results import Failure

_NO_REGULAR_FILE = "is not a regular file; to read a pipe: mf predict - < PIPE"
_WILDCARDS = frozenset("*?")


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells a file from another one of its name, without reading it.

    Attributes:
        size_bytes: its size.
        modified_s: when it was modified, in whole seconds since 1970, which copies in archives keep; None for objects.
        etag: the version of an object in a store; None for files.
    """

    size_bytes: int
    modified_s: int | None = None
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class FoundPath:
    """A file that was found, or a folder that cannot be read.

    Attributes:
        path: begins with the folder as it was given.
        failure: why the folder cannot be read; None for a file.
        state: of the file, where its listing says it.
    """

    path: str
    failure: Failure | None = None
    state: FileState | None = None


def read_state(path: str) -> FileState | None:
    """Return the state of a local file; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return FileState(status.st_size, int(status.st_mtime))


def failure_from_os_error(error: OSError | ValueError, action: str) -> Failure:
    """Return the failure that an error of the operating system means for a row.

    Args:
        error: the error; a ValueError is what Python raises for a NUL in a name.
        action: what failed, as a past participle: "opened".
    """
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return Failure(FailureCode.NOT_FOUND, "no such file")
        case PermissionError():
            return Failure(FailureCode.PERMISSION, "no permission to read it")
        case NotRegularError():
            return Failure(FailureCode.UNSUPPORTED, _NO_REGULAR_FILE)
        case _:
            reason = getattr(error, "strerror", None) or error
            return Failure(FailureCode.NOT_FOUND, f"cannot be {action}: {reason}")


@contextmanager
def translate_os_errors() -> Iterator[None]:
    """Turn errors of the operating system into a PictureError."""
    try:
        yield
    except (OSError, ValueError) as error:
        failure = failure_from_os_error(error, "opened")
        raise PictureError(failure.code, failure.message) from error


def open_file(path: str) -> BinaryIO:
    """Open a regular file for reading; pipes, sockets and devices are refused, and never waited on.

    Raises:
        PictureError: not_found, permission, or unsupported for what is not a regular file.
    """
    with translate_os_errors():
        _check_regular(os.stat(path).st_mode)  # a device is not even opened
        return open_regular(path)


def _check_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise PictureError(FailureCode.UNSUPPORTED, "is a folder, not a picture")
    if not stat.S_ISREG(mode):
        raise PictureError(FailureCode.UNSUPPORTED, _NO_REGULAR_FILE)


@dataclass(slots=True)
class _Folder:
    """A folder that is being walked.

    Attributes:
        relative: its path in the folder where the walk began.
        identity: device and inode.
        names: those still to be visited.
        folders: which of them are folders.
        links: which of them are symbolic links.
    """

    relative: str
    identity: tuple[int, int]
    names: Iterator[str] = field(default_factory=lambda: iter(()))
    folders: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)


def walk_folder(folder: str, selection: Selection) -> Iterator[FoundPath]:
    """Yield the pictures in a folder in natural order, files and folders sorted together.

    Hidden files and folders are skipped. Symbolic links are followed, but no folder is walked twice; with filters that
    name folders, only links that lead back up are not followed. Archives in a folder are not opened. A folder that
    cannot be read gives a failure.
    """
    walk = _Walk(
        folder,
        lambda relative: selection.takes(relative, folder),
        lambda relative: selection.recursive and selection.enters(relative),
        None if selection.names_folders else 0,
    )
    return walk.run()


def walk_glob(pattern: str, selection: Selection) -> Iterator[FoundPath]:
    """Yield what a glob matches, lazily and in natural order, as a shell would expand it.

    A folder that matches is walked like one that is named, unless a `**` finds its files anyway. Hidden names match
    only a part that begins with a dot. If the last part consists of `*` and `?` alone, only files with a picture's
    suffix are taken, as from a folder; otherwise any suffix will do.
    """
    split = pattern.rfind("/", 0, find_wildcard(pattern)) + 1
    top, rest = pattern[:split], pattern[split:]
    texts = [part for part in rest.split("/") if part not in ("", ".")]
    glob, depth, any_depth = compile_glob(rest), len(texts), "**" in texts
    pictures_only = _WILDCARDS.issuperset(texts[-1])

    def takes(relative: str) -> bool:
        names = relative.split("/")
        if not any_depth and len(names) > depth:
            return selection.takes("/".join(names[depth:]), top + "/".join(names[:depth]))
        if rest.endswith("/") or not glob.matches(names) or _is_unmatched_hidden(names[-1], texts[-1]):
            return False
        return selection.takes(relative, top) if pictures_only else selection.passes(top + relative)

    def enters(relative: str) -> bool:
        names = relative.split("/")
        if not any_depth and len(names) > depth:
            return selection.recursive and selection.enters("/".join(names[depth:]))
        if selection.excludes(top + relative):
            return False
        if any_depth:
            return glob.leads_below(names) and not is_hidden(names[-1])
        if _is_unmatched_hidden(names[-1], texts[len(names) - 1]):
            return False
        return glob.matches(names) or glob.leads_below(names)

    plain_depth = texts.index("**") if any_depth else depth
    if selection.names_folders or len(texts) > plain_depth + 2:  # more than a file's name after the first `**`
        return _Walk(top, takes, enters, None).run(is_optional=True)
    return _Walk(top, takes, enters, plain_depth).run(is_optional=True)


def compile_member_glob(pattern: str, selection: Selection) -> Callable[[str], bool]:
    """Return a function that tells whether a glob matches a member of an archive, by the rules of `walk_glob`."""
    glob, texts = compile_glob(pattern), [part for part in pattern.split("/") if part not in ("", ".")]
    fixed = next(at for at, text in enumerate(texts) if is_glob(text))
    any_depth, pictures_only = "**" in texts, _WILDCARDS.issuperset(texts[-1])

    def takes(name: str) -> bool:
        names = name.split("/")
        if not glob.matches(names) or _is_unmatched_hidden(names[-1], texts[-1]):
            return False
        if any_depth and any(map(is_hidden, names[fixed:-1])):
            return False
        if not any_depth and any(map(_is_unmatched_hidden, names, texts)):
            return False
        return selection.takes(name) if pictures_only else selection.passes(name)

    return takes


def find_wildcard(pattern: str) -> int:
    """Return the position of the first wildcard in a glob."""
    return next(at for at, character in enumerate(pattern) if is_glob(character))


def _is_unmatched_hidden(name: str, part: str) -> bool:
    return is_hidden(name) and not part.startswith(".")


class _Walk:
    """A depth-first walk with an explicit stack, because a tree may be deeper than Python's recursion limit.

    Args:
        top: a folder; what is yielded begins with it.
        takes: whether a file is yielded, by its path in `top`.
        enters: whether a folder is entered, by its path in `top`.
        fixed_depth: how many parts of a path matter to what is taken in a folder; None if all do.
    """

    def __init__(
        self,
        top: str,
        takes: Callable[[str], bool],
        enters: Callable[[str], bool],
        fixed_depth: int | None,
    ) -> None:
        self._top, self._takes, self._enters, self._fixed_depth = top, takes, enters, fixed_depth
        self._stack: list[_Folder] = []
        self._walked: set[tuple[tuple[int, int], str]] = set()

    def run(self, *, is_optional: bool = False) -> Iterator[FoundPath]:
        """Yield the files, and a failure for each folder that cannot be read.

        Args:
            is_optional: whether `top` may be missing.
        """
        try:
            self._push(self._top, "")
        except (OSError, ValueError) as error:
            if not is_optional or not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                yield FoundPath(self._top, failure_from_os_error(error, "listed"))
        while self._stack:
            folder = self._stack[-1]
            name = next(folder.names, None)
            if name is None:
                self._stack.pop()
            elif (found := self._visit(folder, name)) is not None:
                yield found

    def _visit(self, folder: _Folder, name: str) -> FoundPath | None:
        """Visit a name in a folder; return a file to take, or a folder that cannot be read."""
        relative = f"{folder.relative}/{name}" if folder.relative else name
        path = os.path.join(self._top, relative)
        is_link = name in folder.links  # its target has not been looked at yet
        if name in folder.folders or (is_link and os.path.isdir(path)):
            return self._enter(path, relative) if not is_link or self._enters(relative) else None
        return FoundPath(path) if not is_link or self._takes(relative) else None

    def _enter(self, path: str, relative: str) -> FoundPath | None:
        try:
            self._push(path, relative)
        except (OSError, ValueError) as error:
            return FoundPath(path, failure_from_os_error(error, "listed"))
        return None

    def _push(self, path: str, relative: str) -> None:
        """Enter a folder, unless it was walked already, or belongs to the kernel."""
        status = os.stat(path or ".")
        folder = _Folder(relative, (status.st_dev, status.st_ino))
        leads_back = any(folder.identity == above.identity for above in self._stack)
        key = (folder.identity, "/".join(relative.split("/")[: self._fixed_depth]))
        if leads_back or key in self._walked or status.st_dev in _kernel_devices():
            return
        _list_folder(path or ".", folder, self._takes, self._enters)
        self._stack.append(folder)
        self._walked.add(key)


@functools.cache
def _kernel_devices() -> frozenset[int]:
    """Return the devices of /proc and /sys, whose folders are endless and hold no pictures."""
    return frozenset(os.lstat(path).st_dev for path in ("/proc", "/sys") if os.path.ismount(path))


def _list_folder(path: str, folder: _Folder, takes: Callable[[str], bool], enters: Callable[[str], bool]) -> None:
    """Fill in the names of a folder that are wanted, and their file types; nothing but the listing is read."""
    prefix = f"{folder.relative}/" if folder.relative else ""
    names: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_symlink():  # followed when its turn comes
                if not enters(prefix + entry.name) and not takes(prefix + entry.name):
                    continue
                folder.links.add(entry.name)
            elif entry.is_dir(follow_symlinks=False):
                if not enters(prefix + entry.name):
                    continue
                folder.folders.add(entry.name)
            elif not takes(prefix + entry.name):
                continue
            names.append(entry.name)
    folder.names = sort_naturally(names, str)
