"""The pictures of archives as sources: those of a whole archive, of a folder or glob in it, or one member."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mfcli.errors import FailureCode
from mfcli.files import is_glob, is_url
from mfcli.inputs.selection import MemberMatcher, Selection
from mfcli.inputs.source import Source, make_url_source
from mfcli.inputs.walk import compile_member_glob, open_file
from mfcli.results import Failure

if TYPE_CHECKING:
    from mfcli.inputs.archives import LastArchive
    from mfcli.inputs.members import Member


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


def expand_archive(path: str, takes: Callable[[str], bool], selection: Selection) -> Iterator[Source]:
    """Yield the wanted members of an archive; the parameters are those of `iter_members`."""
    from mfcli.inputs.archives import iter_members

    for member in iter_members(path, takes, selection):
        yield _make_member_source(path, member, selection, (path, None))


def expand_member(path: str, wanted: str, selection: Selection) -> Iterator[Source]:
    """Yield the member of this name, whatever its suffix, or what a folder or a glob of this name holds."""
    from mfcli.inputs.members import relative_name

    wanted = relative_name(wanted)
    glob = compile_member_glob(wanted, selection) if _is_member_glob(path, wanted, selection) else None
    return _search_member(path, MemberMatcher(wanted, selection, glob), selection)


def expand_listed_member(path: str, wanted: str, selection: Selection, last: "LastArchive") -> Iterator[Source]:
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
    for source in expand_archive(path, matcher.takes, selection):
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
            found = expand_listed_member(argument, member, replace(selection, include=(), exclude=()), last)
            gone = Source(argument, failure=Failure(FailureCode.NOT_FOUND, "no such member in the archive"))
            yield replace(next(found, gone), argument=argument, member=member)
