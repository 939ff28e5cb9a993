"""From arguments to a lazy, ordered stream of pictures: which ones, and under which names.

How one is opened is said in source.py, how those of archives are found in archive_sources.py.
"""

import contextlib
import functools
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from mfcli.errors import FailureCode, NoInputsError, PictureError, UsageError
from mfcli.files import is_url, url_scheme
from mfcli.inputs.archive_sources import expand_archive, expand_listed_member, expand_member
from mfcli.inputs.arguments import STDIN, Argument, ArgumentKind, classify, is_parquet_name, split_member
from mfcli.inputs.lists import MAX_LINE_BYTES, open_list, read_names
from mfcli.inputs.selection import Selection
from mfcli.inputs.source import Source, make_url_source
from mfcli.inputs.walk import (
    FoundPath,
    failure_from_os_error,
    walk_folder,
    walk_glob,
)
from mfcli.results import Failure
from mfcli.store_urls import SCHEMES, is_store_url

if TYPE_CHECKING:
    from mfcli.inputs.archives import LastArchive

    _GetLastArchive = Callable[[], LastArchive]

__all__ = ["STDIN", "Selection", "Source", "iter_sources"]

_FROM_STDIN = "mf predict - < PICTURE"
_LIST_FILES = "list pictures, one per line; for example with: find DIR -name '*.jpg'"
_SKIPPED = "hidden files and names without a picture's suffix are skipped: name them, or use include=GLOB"
_MAX_NAMED = 10
"""Names in the error message about empty arguments."""
_MAX_HELD = 1000
"""Empty arguments that are held back until it is known whether any argument has pictures; more are rows in any case."""


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
        UsageError: standard input is named twice, is a terminal, or is closed; the list cannot be read; the endpoint of
            an object store is not an address.
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
    for name in arguments:
        if url_scheme(name) in SCHEMES:
            from mfcli.store_clients import check_client

            check_client(name)
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
        hint = "mf predict cat.jpg" + ("" if stdin_problem else "; a picture on standard input: -, names: files_from=-")
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
            found = (_make_found_source(each, selection) for each in _walk(name, selection))
            return _make_empty(name, None, selection), found
        case ArgumentKind.OBJECT:
            return None, _expand_object(name, selection)
        case ArgumentKind.ARCHIVE:
            takes = selection.passes if is_parquet_name(argument.archive) else selection.takes_member  # rows: numbers
            sources = expand_archive(argument.archive, takes, selection)
            return _make_empty(argument.archive, None, selection), sources
        case ArgumentKind.MEMBER:
            if get_last_archive is None:
                empty = _make_empty(argument.archive, argument.member, selection)
                return empty, expand_member(argument.archive, argument.member, selection)
            return None, expand_listed_member(argument.archive, argument.member, selection, get_last_archive())
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


def _walk(name: str, selection: Selection) -> Iterator[FoundPath]:
    if not is_url(name):
        return walk_folder(name, selection)
    from mfcli.inputs.objects import walk_prefix

    return walk_prefix(name, selection)


def _match(pattern: str, selection: Selection) -> Iterator[FoundPath]:
    if not is_url(pattern):
        return walk_glob(pattern, selection)
    from mfcli.inputs.objects import match_keys

    return match_keys(pattern, selection)


def _make_found_source(found: FoundPath, selection: Selection) -> Source:
    if found.failure is None and is_url(found.path):
        return replace(make_url_source(found.path, selection), state=found.state)
    return Source(found.path, failure=found.failure)


def _expand_object(url: str, selection: Selection) -> Iterator[Source]:
    """Yield the pictures below a prefix, or else the object of this very name."""
    is_empty = True
    for found in _walk(url, selection):
        is_empty = False
        yield _make_found_source(found, selection)
    if is_empty:
        yield make_url_source(url, selection)


def _expand_glob(pattern: str, selection: Selection) -> Iterator[Source]:
    for found in _match(pattern, selection):
        for source in _expand_match(found, selection):
            yield replace(source, whole=(pattern, None), state=found.state)


def _expand_match(found: FoundPath, selection: Selection) -> Iterator[Source]:
    """Expand what a glob matched, which may be an archive."""
    if found.failure is not None:
        return iter([_make_found_source(found, selection)])
    return _expand(classify(found.path, is_listed=True), None, selection)[1]


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
