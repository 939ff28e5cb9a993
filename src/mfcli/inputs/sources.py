"""From arguments to a lazy, ordered stream of pictures: which ones, under which names, and how to open them.

An input that cannot be read becomes a source that fails when it is opened, so that every failure is a row of the
results. What the bytes mean is decided in decode.py.
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
from mfcli.files import is_glob, is_url, url_scheme
from mfcli.inputs.arguments import STDIN, Argument, ArgumentKind, classify, is_parquet_name, split_member
from mfcli.inputs.lists import MAX_LINE_BYTES, open_list, read_names
from mfcli.inputs.objects import match_keys, open_ahead, walk_prefix
from mfcli.inputs.read_ahead import Download
from mfcli.inputs.selection import OFFLINE, MemberMatcher, Selection
from mfcli.inputs.walk import (
    FileState,
    FoundPath,
    compile_member_glob,
    failure_from_os_error,
    open_file,
    translate_os_errors,
    walk_folder,
    walk_glob,
)
from mfcli.results import Failure, join_member
from mfcli.stores import HUB_SCHEME, SCHEMES, check_stores, is_store_url

if TYPE_CHECKING:
    from mfcli.inputs.archives import LastArchive
    from mfcli.inputs.decode import DecodedPicture
    from mfcli.inputs.members import Member

    _GetLastArchive = Callable[[], LastArchive]

__all__ = ["STDIN", "Selection", "Source", "iter_sources"]

_FROM_STDIN = "mf predict - < PICTURE"
_LIST_FILES = "list pictures, one per line; for example with: find DIR -name '*.jpg'"
_SKIPPED = "hidden files and names without a picture's suffix are skipped: name them, or use include=GLOB"
_MAX_NAMED = 10
"""Names in the error message about empty arguments."""
_MAX_HELD = 1000
"""Empty arguments that are held back until it is known whether any argument has pictures; more are rows in any case."""


@dataclass(frozen=True, slots=True)
class Source:
    """One picture to classify.

    Attributes:
        argument: as given by the user, undecodable bytes as surrogate escapes; for a file found in a folder, a path
            that begins with the folder as it was given.
        member: the path inside the archive `argument`; None for a picture that is not in an archive.
        failure: why it cannot be read, where that is known before it is opened.
        opener: returns the bytes; None where `argument` is the path of a file.
        whole: argument and member of the glob, the archive or the part of an archive that was searched for it; None
            for a picture that was named itself or found in a folder.
        decoded: the pixels, where they are in memory and nothing is opened.
        kept: what its row keeps, see `Selection.keep`.
        held_bytes: bytes of memory that it holds, where they are not the caller's.
        state: of the file or archive, where its listing said it.
    """

    argument: str
    member: str | None = None
    failure: Failure | None = None
    opener: Callable[[], BinaryIO] | None = None
    whole: tuple[str, str | None] | None = None
    decoded: "DecodedPicture | None" = None
    kept: dict[str, Any] | None = None
    held_bytes: int = 0
    state: FileState | None = None

    @property
    def is_stdin(self) -> bool:
        """Whether it is standard input, whose name does not identify the picture."""
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

    @property
    def shown_name(self) -> str:
        """The name for people, as in `PictureResult`."""
        return join_member(self.input, self.member)

    def start(self) -> bool:
        """Begin to fetch it, if it is one that can be fetched before it is opened; return whether it is."""
        if not isinstance(self.opener, Download):
            return False
        self.opener.start()
        return True

    def open(self) -> BinaryIO:
        """Open the bytes for reading, seekable; several threads may open different sources at once.

        Raises:
            PictureError: any code; a file is not_found, permission, or unsupported when it is not a regular one.
        """
        if self.failure is not None:
            raise PictureError(self.failure.code, self.failure.message)
        with translate_os_errors():
            return open_file(self.argument) if self.opener is None else self.opener()


def iter_sources(
    arguments: Iterable[str],
    stdin: BinaryIO | None = None,
    *,
    files_from: str | None = None,
    nul: bool = False,
    selection: Selection = Selection(),  # noqa: B008 - frozen
) -> Iterator[Source]:
    """Return the pictures that the arguments name, then those of the list, in order and as lazily as possible.

    An argument without pictures is a source that fails (not_found), unless no argument has any.

    Args:
        arguments: files, folders, globs, archives, Parquet files, members of these (`photos.zip/a.jpg`), any of these
            in object stores (`s3://bucket/photos/`), URLs, or `-` for the bytes of one picture on standard input.
        stdin: standard input, None where there is none.
        files_from: a file that lists more of them, one per line, `-` for standard input; in it, a line `-` is a file of
            that name, and wildcards are plain characters.
        nul: whether the names in the list end with NUL bytes instead of line ends.
        selection: which files of folders, archives and lists are taken, and the limits.

    Raises:
        NoInputsError: there are no arguments, or, while iterating, none of them has pictures.
        UsageError: standard input is named twice, is a terminal, or is closed; the list cannot be read.
        EngineError: a package that an argument needs is not installed.
        TypeError: the arguments are a single string.
    """
    if isinstance(arguments, str):
        raise TypeError(f"iter_sources takes a list of arguments: iter_sources([{arguments!r}])")
    arguments = list(arguments)
    _check_usage(arguments, stdin, files_from, nul)
    if any(is_parquet_name((split_member(name) or [name])[0]) for name in arguments):
        from mfcli.outputs.parquet import import_parquet

        import_parquet()
    if any(url_scheme(name) in SCHEMES for name in arguments):
        check_stores()
    expansions: _Expansions = (_expand(classify(name), stdin, selection) for name in arguments)
    if files_from is not None:
        file = stdin if files_from == STDIN else open_list(files_from)
        assert file is not None  # checked above
        expansions = itertools.chain(expansions, _expand_list(file, nul, files_from, selection))
    return _chain(expansions, files_from, selection)


def _check_usage(arguments: list[str], stdin: BinaryIO | None, files_from: str | None, nul: bool) -> None:
    if nul and files_from is None:
        raise UsageError("nul=True is about the names in a list, and there is no list", "files_from=FILE")
    stdin_problem = _find_stdin_problem(stdin)
    if not arguments and files_from is None:
        hint = "mf predict PICTURE..." if stdin_problem else f"names on standard input: files_from=-; {_FROM_STDIN}"
        raise NoInputsError("nothing to classify", hint)
    if arguments.count(STDIN) > 1:
        raise UsageError("'-' stands for one picture on standard input and can be given once", _FROM_STDIN)
    if STDIN in arguments and files_from == STDIN:
        raise UsageError("standard input cannot be a picture ('-') and a list (files_from=-) at once", _FROM_STDIN)
    if STDIN in arguments and stdin_problem:
        raise UsageError(f"'-' reads a picture from standard input, which is {stdin_problem}", _FROM_STDIN)
    if files_from == STDIN and stdin_problem:
        raise UsageError(f"files_from=- reads names from standard input, which is {stdin_problem}", _LIST_FILES)


def _find_stdin_problem(stdin: BinaryIO | None) -> str | None:
    """Return why nothing can be read from standard input, None where it can."""
    if stdin is None or stdin.closed:
        return "closed"
    return "a terminal" if stdin.isatty() else None


def _describe_filters(selection: Selection) -> str | None:
    filters = [f"include={glob}" for glob in selection.include] + [f"exclude={glob}" for glob in selection.exclude]
    if not selection.recursive:
        filters.append("recursive=False")
    return f"check {', '.join(filters)}; globs are case-sensitive" if filters else None


_Expansion = tuple[Source | None, Iterator[Source]]
"""The sources that an argument gives, after the one that stands for them if there are none."""
_Expansions = Iterator[_Expansion]


def _chain(expansions: _Expansions, files_from: str | None, selection: Selection) -> Iterator[Source]:
    """Chain the sources, with one that fails for each argument without any.

    Raises:
        NoInputsError: there are none but those that fail.
    """
    held: list[Source] | None = []  # empty arguments, until the first source
    for empty, sources in expansions:
        is_empty = True
        for source in sources:
            is_empty = False
            if held is not None:
                yield from held
                held = None
            yield source
        if is_empty and empty is not None:
            if held is None:
                yield empty
            elif len(held) < _MAX_HELD:
                held.append(empty)
            else:
                yield from [*held, empty]
                held = None
    if held is not None:
        listed = "the list on standard input" if files_from == STDIN else files_from
        named = [source.shown_name for source in held[:_MAX_NAMED]]
        others = f" and {len(held) - _MAX_NAMED} others" if len(held) > _MAX_NAMED else ""
        left_out = selection.left_out.in_words() if selection.left_out else None
        hint = _describe_filters(selection) or (_SKIPPED if held else _LIST_FILES)
        message = f"no pictures in {', '.join(named) or listed}{others}"
        raise NoInputsError(f"{message}; {left_out}" if left_out else message, hint)


def _expand(
    argument: Argument,
    stdin: BinaryIO | None,
    selection: Selection,
    get_last_archive: "_GetLastArchive | None" = None,
) -> _Expansion:
    """Return the sources that an argument gives.

    Args:
        argument: the argument, or a line of a list.
        stdin: standard input.
        selection: the filters and limits.
        get_last_archive: for a line of a list, returns the archive that an earlier line named; None for an argument.
    """
    name = argument.name
    match argument.kind:
        case ArgumentKind.STDIN:
            assert stdin is not None  # checked before
            read = functools.cache(partial(_read_stdin, stdin, selection.max_bytes))  # it may be opened again
            return None, iter([Source(STDIN, opener=lambda: io.BytesIO(read()))])
        case ArgumentKind.URL:
            return None, iter([make_url_source(name, selection)])
        case ArgumentKind.FOLDER:
            walk = walk_prefix if is_url(name) else walk_folder
            found = (_make_found_source(each, selection) for each in walk(name, selection))
            return _make_empty(name, None, selection), found
        case ArgumentKind.OBJECT:
            return None, _expand_object(name, selection)
        case ArgumentKind.ARCHIVE:
            takes = selection.passes if is_parquet_name(argument.archive) else selection.takes_member  # rows: numbers
            sources = _expand_archive(argument.archive, takes, selection)
            return _make_empty(argument.archive, None, selection), sources
        case ArgumentKind.MEMBER:
            if get_last_archive is None:
                empty = _make_empty(argument.archive, argument.member, selection)
                return empty, _expand_member(argument.archive, argument.member, selection)
            return None, _expand_listed_member(argument.archive, argument.member, selection, get_last_archive())
        case ArgumentKind.GLOB:
            message = "no such file, and as a glob it matches no picture"
            return Source(name, failure=Failure(FailureCode.NOT_FOUND, message)), _expand_glob(name, selection)
        case _:
            return None, iter([Source(name)])


def _make_empty(name: str, member: str | None, selection: Selection) -> Source:
    """Return what stands for a folder, an archive or a part of one without pictures."""
    matching = "matching " if _describe_filters(selection) else ""
    return Source(name, member, Failure(FailureCode.NOT_FOUND, f"contains no {matching}pictures"))


def _read_stdin(stdin: BinaryIO, max_bytes: int) -> bytes:
    data = stdin.read(max_bytes + 1) or b""
    if len(data) > max_bytes:
        raise PictureError(FailureCode.TOO_LARGE, f"is over {max_bytes} bytes")
    name = re.split(rb"[\0\n]", data[:MAX_LINE_BYTES], maxsplit=1)[0]
    if len(name) < len(data) and os.path.lexists(os.fsdecode(name.rstrip(b"\r"))):  # find DIR | mf predict -
        raise UsageError("standard input lists names, and '-' reads the bytes of one picture", "files_from=-")
    return data


def _make_found_source(found: FoundPath, selection: Selection) -> Source:
    if found.failure is None and is_url(found.path):
        return replace(make_url_source(found.path, selection), state=found.state)
    return Source(found.path, failure=found.failure)


def _expand_object(url: str, selection: Selection) -> Iterator[Source]:
    """Yield the pictures below a prefix, or else the object of this very name."""
    is_empty = True
    for found in walk_prefix(url, selection):
        is_empty = False
        yield _make_found_source(found, selection)
    if is_empty:
        yield make_url_source(url, selection)


def _expand_glob(pattern: str, selection: Selection) -> Iterator[Source]:
    for found in match_keys(pattern, selection) if is_url(pattern) else walk_glob(pattern, selection):
        for source in _expand_match(found, selection):
            yield replace(source, whole=(pattern, None), state=found.state)


def _expand_match(found: FoundPath, selection: Selection) -> Iterator[Source]:
    """Expand what a glob matched, which may be an archive."""
    if found.failure is not None:
        return iter([_make_found_source(found, selection)])
    return _expand(classify(found.path, is_listed=True), None, selection)[1]


# ---------------------------------------------------------------------------------------------------------- archives


def _make_member_source(
    path: str, member: "Member", selection: Selection, whole: tuple[str, str | None] | None = None
) -> Source:
    failure, opener = member.failure, member.opener
    if member.target is not None:
        if is_url(member.target):
            found = make_url_source(member.target, selection)
            failure, opener = found.failure, found.opener
        else:
            opener = partial(open_file, member.target)
    return Source(path, member.name, failure, opener, whole, kept=member.kept, held_bytes=member.held_bytes)


def _expand_archive(path: str, takes: Callable[[str], bool], selection: Selection) -> Iterator[Source]:
    from mfcli.inputs.archives import iter_members

    for member in iter_members(path, takes, selection):
        yield _make_member_source(path, member, selection, (path, None))


def _expand_member(path: str, wanted: str, selection: Selection) -> Iterator[Source]:
    """Yield the member of this name, whatever its suffix, or what a folder or a glob of this name holds."""
    from mfcli.inputs.members import relative_name

    wanted = relative_name(wanted)
    glob = compile_member_glob(wanted, selection) if _is_member_glob(path, wanted, selection) else None
    return _search_member(path, MemberMatcher(wanted, selection, glob), selection)


def _expand_listed_member(path: str, wanted: str, selection: Selection, last: "LastArchive") -> Iterator[Source]:
    """Yield the member or folder that a line of a list names; unlike an argument, it is filtered and never a glob."""
    from mfcli.inputs.members import relative_name

    wanted = relative_name(wanted)
    is_filtered = not selection.passes(f"{path}/{wanted}")
    if found := last.find(path, wanted):
        if not is_filtered:
            yield from (_make_member_source(path, member, selection) for member in found)
        return
    yield from _search_member(path, MemberMatcher(wanted, selection, None, is_filtered=is_filtered), selection)


def _is_member_glob(path: str, wanted: str, selection: Selection) -> bool:
    """Whether a name with wildcards is a glob, and not the name of a member that has them.

    Looking for that member reads a tar once more, so in a tar it is done only for `[`, which occurs in real names.
    """
    from mfcli.inputs.archives import iter_members

    if not is_glob(wanted):
        return False
    if not path.lower().endswith(".zip") and "[" not in wanted:
        return True
    return all(member.name is None for member in iter_members(path, wanted.__eq__, selection))


def _search_member(path: str, matcher: MemberMatcher, selection: Selection) -> Iterator[Source]:
    is_empty = True
    for source in _expand_archive(path, matcher.takes, selection):
        is_empty = False
        yield source if source.member is None else replace(source, whole=(path, matcher.wanted))
    if is_empty and not matcher.exists and not matcher.is_filtered:
        name = os.fsencode(matcher.wanted).decode("utf-8", "replace")
        yield Source(path, name, Failure(FailureCode.NOT_FOUND, "no such member in the archive"))


def iter_named_sources(names: Iterable[tuple[str, str | None]], selection: Selection) -> Iterator[Source]:
    """Yield exactly one source for each argument and member that a `Source` had; what has gone since fails.

    Neighbours in one archive should follow one another, as `LastArchive` says.
    """
    from mfcli.inputs.archives import LastArchive

    last = LastArchive(selection)
    for argument, member in names:
        if member is None:
            yield make_url_source(argument, selection) if is_url(argument) else Source(argument)
        else:
            found = _expand_listed_member(argument, member, replace(selection, include=(), exclude=()), last)
            gone = Source(argument, failure=Failure(FailureCode.NOT_FOUND, "no such member in the archive"))
            yield replace(next(found, gone), argument=argument, member=member)


# -------------------------------------------------------------------------------------------------------------- URLs


def make_url_source(url: str, selection: Selection) -> Source:
    """Return the picture of a URL, with the selection's limits; nothing is requested yet."""
    scheme = url_scheme(url)
    if scheme == "file":
        return _make_file_url_source(url)
    if scheme not in ("http", "https") and not is_store_url(url):
        message = f"{scheme}:// is not supported; http, https, file, {', '.join(SCHEMES)} and {HUB_SCHEME} are"
        return Source(url, failure=Failure(FailureCode.UNSUPPORTED, message))
    if selection.offline:
        return Source(url, failure=OFFLINE)
    if is_store_url(url):
        return Source(url, opener=open_ahead(url, selection))
    return Source(url, opener=partial(_fetch, url, selection.timeout_s, selection.max_bytes))


def _make_file_url_source(url: str) -> Source:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return Source(url, failure=Failure(FailureCode.UNSUPPORTED, "is not a valid file URL"))
    if host not in (None, "localhost"):
        return Source(url, failure=Failure(FailureCode.UNSUPPORTED, "is a file on another host"))
    path = os.fsdecode(unquote_to_bytes(os.fsencode(parts.path)))
    return Source(url, opener=partial(open_file, path))


def _fetch(url: str, timeout_s: float, max_bytes: int) -> BinaryIO:
    from mfcli.inputs.web import open_url  # requests takes 100 ms to import

    return open_url(url, timeout_s, max_bytes)


# ------------------------------------------------------------------------------------------------------------- lists


def _expand_list(file: BinaryIO, nul: bool, files_from: str, selection: Selection) -> _Expansions:
    @functools.cache
    def get_last_archive() -> "LastArchive":
        from mfcli.inputs.archives import LastArchive

        return LastArchive(selection)

    try:
        with contextlib.nullcontext() if files_from == STDIN else file:
            yield from (_expand_line(line, nul, selection, get_last_archive) for line in read_names(file, nul=nul))
    except OSError as error:  # a folder on standard input, a disk that fails
        failure = failure_from_os_error(error, "read")
        yield None, iter([Source(files_from, failure=Failure(failure.code, f"as a list, {failure.message}"))])


def _expand_line(line: bytes, nul: bool, selection: Selection, get_last_archive: "_GetLastArchive") -> _Expansion:
    name = os.fsdecode(line)
    advice = "; a list that find -print0 writes needs nul=True" if b"\0" in line and not nul else ""
    if len(line) > MAX_LINE_BYTES:
        message = f"a name in the list is over {MAX_LINE_BYTES} bytes{advice}"
        return None, iter([Source(f"{name[:200]}...", failure=Failure(FailureCode.TOO_LARGE, message))])
    if advice:
        return None, iter([Source(name, failure=Failure(FailureCode.NOT_FOUND, f"no such file{advice}"))])
    argument = classify(name, is_listed=True)
    path = re.split(r"[?#]", name)[0] if argument.kind is ArgumentKind.URL and not is_store_url(name) else name
    is_picture = argument.kind in (ArgumentKind.URL, ArgumentKind.FILE)  # others are filtered by what they hold
    if not selection.passes(path) if is_picture else selection.excludes(path):
        return None, iter(())
    return _expand(argument, None, selection, get_last_archive)
