"""From arguments to a lazy, ordered stream of pictures: which ones, under which names, and how to open them.

An argument is a file, a folder, a glob that the shell left alone, a web address, an archive or a member of one, or `-`;
a line of a list is any of them but a glob or standard input. What cannot be read becomes a source that fails when it is
opened, so that every failure is a row. What the bytes mean is images.py's business.
"""

import base64
import contextlib
import functools
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit

from mfcli.errors import FailureCode, NoInputsError, PictureError, UsageError
from mfcli.files import is_glob, url_scheme
from mfcli.inputs.arguments import STDIN, Argument, ArgumentKind, classify
from mfcli.inputs.selection import Selection
from mfcli.inputs.walk import (
    Found,
    failure_from_os_error,
    member_glob,
    open_file,
    translate_os_errors,
    walk_folder,
    walk_glob,
)
from mfcli.results import Failure

if TYPE_CHECKING:
    from mfcli.inputs.archives import LastArchive, Member

    _Last = Callable[[], LastArchive]

__all__ = ["STDIN", "Selection", "Source", "iter_sources"]

_FROM_STDIN = "mf predict - < PICTURE"
_LIST_FROM_STDIN = "find DIR -name '*.jpg' -print0 | mf predict --files-from - -0"
_LEFT_OUT = "hidden files, and names without a picture's suffix, are left out: name them, or --include GLOB"
_FILTERED = "check --include, --exclude and --no-recursive; globs tell capital letters from small ones"
_MAX_LINE_BYTES = 2**16
_CHUNK_BYTES = 2**16
_MAX_NAMED = 10
"""The folders without pictures that are remembered until the first picture comes."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Source:
    """One picture that is to be classified.

    Attributes:
        argument: what the user gave, undecodable bytes as surrogate escapes; what a folder holds begins with the folder
            as it was given.
        member: the member of the archive `argument`, as text; None for what is not in an archive.
        failure: why it cannot be read, where that is known before it is opened.
        opener: gives the bytes; None where `argument` is the path of a file.
        whole: argument and member of the glob or archive, or of what is named in that, which was gone through for it;
            None for what was looked up alone.
    """

    argument: str
    member: str | None = None
    failure: Failure | None = None
    opener: Callable[[], BinaryIO] | None = None
    whole: tuple[str, str | None] | None = None

    @property
    def is_stdin(self) -> bool:
        """Whether it is standard input, whose name says nothing about the picture."""
        return self.argument == STDIN and self.opener is not None

    @property
    def raw(self) -> bytes:
        """The exact bytes of the argument."""
        return os.fsencode(self.argument)

    @property
    def input(self) -> str:
        """The argument as text; bytes that are not UTF-8 are U+FFFD."""
        return self.raw.decode("utf-8", errors="replace")

    @property
    def input_b64(self) -> str | None:
        """The argument's exact bytes in base64 where it is not UTF-8, else None."""
        return None if self.raw == self.input.encode() else base64.b64encode(self.raw).decode()

    def open(self) -> BinaryIO:
        """Open the bytes for reading, seekable; different sources may be opened by several threads at once.

        Raises:
            PictureError: any code; a file is not_found, permission, or unsupported when it is not a regular one.
        """
        if self.failure is not None:
            raise PictureError(self.failure.code, self.failure.message)
        with translate_os_errors():
            return open_file(self.argument) if self.opener is None else self.opener()


def iter_sources(
    arguments: Iterable[str],
    stdin: BinaryIO | None,
    *,
    files_from: str | None = None,
    nul: bool = False,
    selection: Selection = Selection(),  # noqa: B008 - frozen
    notice: Callable[[str], None] = lambda _: None,
) -> Iterator[Source]:
    """Return the pictures that the arguments name, then those of the list, in their order and as late as possible.

    Args:
        arguments: files, folders, globs, archives, members of archives (`photos.zip/a.jpg`), web addresses, or `-` for
            the bytes of one picture on standard input.
        stdin: standard input, None where there is none.
        files_from: a file that lists more of them, one a line, `-` for standard input; a line `-` is a file of that
            name, and a line is never a glob.
        nul: whether the names in the list end with NUL bytes, not with lines.
        selection: what of folders, archives and lists is taken, and the limits.
        notice: told of an argument that gives no pictures while others do.

    Raises:
        NoInputsError: there are none; while iterating, too, when nothing that was named gave any.
        UsageError: standard input is named twice, is a keyboard, or is not there; the list cannot be read.
    """
    arguments = list(arguments)
    _check_usage(arguments, stdin, files_from, nul)
    streams = (_of_argument(classify(name), stdin, selection) for name in arguments)
    hint = _FILTERED if selection.include or selection.exclude or not selection.recursive else None
    if files_from is None:
        return _noticed(streams, notice, None, hint)
    file = stdin if files_from == STDIN else _opened_list(files_from)
    assert file is not None  # checked above
    listed = _of_lines(file, nul, files_from, selection)
    return _noticed(itertools.chain(streams, listed), notice, files_from, hint)


def _check_usage(arguments: list[str], stdin: BinaryIO | None, files_from: str | None, nul: bool) -> None:
    if nul and files_from is None:
        raise UsageError("-0 says how the names in a list end, and there is no --files-from", _LIST_FROM_STDIN)
    if not arguments and files_from is None:
        is_piped = _no_stdin(stdin) is None
        raise NoInputsError("nothing to classify", _FROM_STDIN if is_piped else "mf predict PICTURE...")
    if arguments.count(STDIN) > 1:
        raise UsageError("'-' stands for one picture on standard input and can be given once", _FROM_STDIN)
    if STDIN in arguments and files_from == STDIN:
        raise UsageError("standard input cannot be a picture ('-') and a list (--files-from -) at once", _FROM_STDIN)
    if STDIN in arguments and (what := _no_stdin(stdin)):
        raise UsageError(f"'-' reads a picture from standard input, which is {what}", _FROM_STDIN)
    if files_from == STDIN and (what := _no_stdin(stdin)):
        raise UsageError(f"--files-from - reads names from standard input, which is {what}", _LIST_FROM_STDIN)


def _no_stdin(stdin: BinaryIO | None) -> str | None:
    """Why nothing can be read from standard input, None where it can."""
    if stdin is None or stdin.closed:
        return "closed"
    return "a keyboard" if stdin.isatty() else None


def _opened_list(path: str) -> BinaryIO:
    try:
        file = open(path, "rb")  # noqa: SIM115 - read as long as the stream lives; it may well be a pipe
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot read the list {path}: {reason}", "--files-from FILE, or - for standard input"
        ) from error
    return file


_Streams = Iterator[tuple[str | None, Iterator[Source]]]
"""What each argument gives, with its name where it is a failure of the whole run if nothing gives anything."""


def _noticed(
    streams: _Streams, notice: Callable[[str], None], files_from: str | None, hint: str | None
) -> Iterator[Source]:
    """Chain the streams, and say which of them were empty: in a note when others were not, else in an error."""
    empty: list[str] = []
    found = False
    for where, stream in streams:
        is_empty = True
        for source in stream:
            is_empty = False
            if not found:
                found = True
                for earlier in empty:
                    notice(f"no pictures in {earlier}")
            yield source
        if is_empty and where is not None:
            if found:
                notice(f"no pictures in {where}")
            elif len(empty) < _MAX_NAMED:
                empty.append(where)
    if not found:
        listed = "the list on standard input" if files_from == STDIN else files_from
        where = ", ".join(empty) or f"{listed}"
        raise NoInputsError(f"no pictures in {where}", hint or (_LEFT_OUT if empty else _LIST_FROM_STDIN))


def _of_argument(
    argument: Argument, stdin: BinaryIO | None, selection: Selection, last: "_Last | None" = None
) -> tuple[str | None, Iterator[Source]]:
    """What an argument gives, and its name where it is a failure of the run if nothing does. Lines have a `last`."""
    name = argument.name
    match argument.kind:
        case ArgumentKind.STDIN:
            assert stdin is not None  # checked before
            return None, iter([Source(STDIN, opener=partial(_read_stdin, stdin, selection.max_bytes))])
        case ArgumentKind.URL:
            return None, iter([_of_address(name, selection)])
        case ArgumentKind.FOLDER:
            return Source(name).input, map(_of_found, walk_folder(name, selection))
        case ArgumentKind.ARCHIVE:
            return Source(argument.archive).input, _of_archive(argument.archive, selection.takes_member, selection)
        case ArgumentKind.MEMBER:
            return None if last else Source(name).input, _of_member(argument.archive, argument.member, selection, last)
        case ArgumentKind.GLOB:
            return None, _of_glob(name, selection)
        case _:
            return None, iter([Source(name)])


def _read_stdin(stdin: BinaryIO, max_bytes: int) -> BinaryIO:
    data = stdin.read(max_bytes + 1) or b""
    if len(data) > max_bytes:
        raise PictureError(FailureCode.TOO_LARGE, f"is over {max_bytes} bytes")
    return io.BytesIO(data)


def _of_found(found: Found) -> Source:
    return Source(found.path, failure=found.failure)


def _of_glob(pattern: str, selection: Selection) -> Iterator[Source]:
    is_empty = True
    for found in walk_glob(pattern, selection):
        is_empty = False
        for source in [_of_found(found)] if found.failure else _of_match(found.path, selection):
            yield replace(source, whole=(pattern, None))
    if is_empty:
        yield Source(
            pattern, failure=Failure(FailureCode.NOT_FOUND, "no such file, and as a glob it matches no picture")
        )


def _of_match(path: str, selection: Selection) -> Iterator[Source]:
    return _of_argument(classify(path, is_listed=True), None, selection)[1]


def _of_found_member(path: str, member: "Member", whole: tuple[str, None] | None = None) -> Source:
    return Source(path, member.name, member.failure, member.opener, whole)


def _of_archive(path: str, takes: Callable[[str], bool], selection: Selection) -> Iterator[Source]:
    from mfcli.inputs.archives import members

    for member in members(path, takes, selection.max_bytes):
        yield _of_found_member(path, member, (path, None))


def _of_member(path: str, wanted: str, selection: Selection, last: "_Last | None") -> Iterator[Source]:
    """The member of this name, whatever its suffix; or what a folder or, but for a line, a glob of this name holds.

    The filters are for what a folder or a glob holds, and for lines.
    """
    from mfcli.inputs.archives import relative_name

    wanted = relative_name(wanted)
    is_filtered = last is not None and not selection.passes(f"{path}/{wanted}")
    if last is not None and (found := last().named(path, wanted)):
        if not is_filtered:
            yield from (_of_found_member(path, member) for member in found)
        return
    glob = member_glob(wanted, selection) if last is None and _is_member_glob(path, wanted, selection) else None
    matcher = _MemberMatcher(wanted, selection, glob, takes_itself=not is_filtered)
    is_empty = True
    for source in _of_archive(path, matcher.takes, selection):
        is_empty = False
        yield source if source.member is None else replace(source, whole=(path, wanted))
    if is_empty and not matcher.exists and not is_filtered:
        name = os.fsencode(wanted).decode("utf-8", "replace")
        yield Source(path, name, Failure(FailureCode.NOT_FOUND, "no such member in the archive"))


def _is_member_glob(path: str, wanted: str, selection: Selection) -> bool:
    """Whether a name with wildcards is a glob, and not the name of a member that has them.

    Looking for that member reads a tar once more, so in a tar only `[` makes us look: names of files do have it.
    """
    from mfcli.inputs.archives import members

    if not is_glob(wanted):
        return False
    if not path.lower().endswith(".zip") and "[" not in wanted:
        return True
    return all(member.name is None for member in members(path, wanted.__eq__, selection.max_bytes))


class _MemberMatcher:
    """Decides which members of an archive are wanted: one of this name, what a folder holds, or what a glob matches.

    Attributes:
        exists: whether the archive has a member or a folder of this name.
    """

    def __init__(
        self, wanted: str, selection: Selection, glob: Callable[[str], bool] | None, *, takes_itself: bool
    ) -> None:
        self._wanted, self._folder = wanted, f"{wanted.rstrip('/')}/"
        self._selection, self._glob, self._takes_itself = selection, glob, takes_itself
        self.exists = False

    def takes(self, name: str) -> bool:
        """Whether a member is wanted, by its path in the archive."""
        if name == self._wanted:
            self.exists = True
            return self._takes_itself
        if name.startswith(self._folder):
            self.exists = True
            return self._selection.takes_member(name[len(self._folder) :])
        return self._glob is not None and self._glob(name)


def _of_address(url: str, selection: Selection) -> Source:
    scheme = url_scheme(url)
    if scheme == "file":
        return _of_file_address(url)
    if scheme not in ("http", "https"):
        return Source(
            url, failure=Failure(FailureCode.UNSUPPORTED, f"{scheme}:// is not read; http, https and file are")
        )
    if selection.offline:
        return Source(
            url,
            failure=Failure(FailureCode.NETWORK, "not fetched while offline (--offline, MF_OFFLINE, HF_HUB_OFFLINE)"),
        )
    return Source(url, opener=partial(_fetch, url, selection.timeout_s, selection.max_bytes))


def _of_file_address(url: str) -> Source:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return Source(url, failure=Failure(FailureCode.UNSUPPORTED, "is not a valid address of a file"))
    if host not in (None, "localhost"):
        return Source(url, failure=Failure(FailureCode.UNSUPPORTED, "is a file of another machine"))
    path = os.fsdecode(unquote_to_bytes(os.fsencode(parts.path)))
    return Source(url, opener=partial(open_file, path))


def _fetch(url: str, timeout_s: float, max_bytes: int) -> BinaryIO:
    from mfcli.inputs.web import open_url  # requests takes 100 ms to import

    return open_url(url, timeout_s, max_bytes)


def _of_lines(file: BinaryIO, nul: bool, files_from: str, selection: Selection) -> _Streams:
    lines = _lines(file, b"\0" if nul else b"\n")

    @functools.cache
    def last() -> "LastArchive":
        from mfcli.inputs.archives import LastArchive

        return LastArchive(selection.max_bytes)

    try:
        with contextlib.nullcontext() if files_from == STDIN else file:
            yield from (_of_line(line, nul, selection, last) for line in lines)
    except OSError as error:  # a folder on standard input, a disk that fails
        failure = failure_from_os_error(error, "read")
        yield None, iter([Source(files_from, failure=Failure(failure.code, f"as a list, {failure.message}"))])


def _of_line(line: bytes, nul: bool, selection: Selection, last: "_Last") -> tuple[str | None, Iterator[Source]]:
    name = os.fsdecode(line)
    wrong_end = "; a list that find -print0 writes is read with -0" if b"\0" in line and not nul else ""
    if len(line) > _MAX_LINE_BYTES:
        message = f"a name in the list is over {_MAX_LINE_BYTES} bytes{wrong_end}"
        return None, iter([Source(f"{name[:200]}...", failure=Failure(FailureCode.TOO_LARGE, message))])
    if wrong_end:
        return None, iter([Source(name, failure=Failure(FailureCode.NOT_FOUND, f"no such file{wrong_end}"))])
    argument = classify(name, is_listed=True)
    path = re.split(r"[?#]", name)[0] if argument.kind is ArgumentKind.URL else name
    is_one = argument.kind in (ArgumentKind.URL, ArgumentKind.FILE)  # others are filtered by what they hold
    if not (selection.passes(path) if is_one else selection.lets_in(path)):
        return None, iter(())
    return _of_argument(argument, None, selection, last)


def _lines(file: BinaryIO, end: bytes) -> Iterator[bytes]:
    """Yield the names of a list, each as soon as it has been read; of one that is too long, only its beginning."""
    rest, skipping = b"", False
    is_first = True
    for chunk in _chunks(file):
        if is_first and end == b"\n":
            chunk = chunk.removeprefix(_BYTE_ORDER_MARK)
        is_first = False
        *lines, rest = (rest + chunk).split(end)
        for line in lines:
            if not skipping:
                yield from _stripped(line, end)
            skipping = False
        if len(rest) > _MAX_LINE_BYTES + 1:
            if not skipping:
                yield rest
            rest, skipping = b"", True
    if not skipping:
        yield from _stripped(rest, end)


def _stripped(line: bytes, end: bytes) -> Iterator[bytes]:
    if end == b"\n":
        line = line.removesuffix(b"\r")
        if not line.strip():
            return
    if line:
        yield line


def _chunks(file: Any) -> Iterator[bytes]:
    """What the file has, without waiting until a buffer is full."""
    read = getattr(file, "read1", file.read)
    while chunk := read(_CHUNK_BYTES):
        yield chunk
