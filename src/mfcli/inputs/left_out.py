"""Counts the files of folders and archives that are not taken because of their suffix, so that none vanishes."""

import re
import shlex
from pathlib import PurePosixPath

from mfcli.inputs.arguments import ARCHIVE_SUFFIXES
from mfcli.inputs.codecs import OPTIONAL_FORMATS

_COMPANIONS = frozenset(
    {".aae", ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".thm", ".tsv", ".txt", ".xml", ".xmp"}
    | {".npz", ".partial", ".yaml", ".yml"}
)
"""What programs write beside pictures (sidecars, Thumbs.db, desktop.ini, results); not worth a note."""
_SUFFIX = re.compile(r"(\.tar)?\.[a-z0-9_~+-]{1,15}")
_NO_SUFFIX, _OTHER = "", "other"
_MAX_SUFFIXES = 100
_MAX_SHOWN = 5


class LeftOut:
    """Counts by suffix, in bounded memory; the usual companions of pictures are not counted."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {_NO_SUFFIX: 0}
        self._archive = ""  # the first one that can be named

    def add(self, relative: str, folder: str | None) -> None:
        """Count a file.

        Args:
            relative: its path.
            folder: where the path begins; None for a member of an archive.
        """
        name = relative.rpartition("/")[2].lower()
        suffix = next((suffix for suffix in ARCHIVE_SUFFIXES if name.endswith(suffix)), None)
        if suffix is not None:
            self._archive = self._archive or ("" if folder is None else str(PurePosixPath(folder, relative)))
        else:
            suffix = name[name.rfind(".") :] if "." in name else _NO_SUFFIX
        if PurePosixPath(name.removesuffix(".gz")).suffix in _COMPANIONS:
            return
        if suffix not in self._counts and (len(self._counts) >= _MAX_SUFFIXES or not _SUFFIX.fullmatch(suffix)):
            suffix = _OTHER
        self._counts[suffix] = self._counts.get(suffix, 0) + 1

    @property
    def counts(self) -> dict[str, int]:
        """The files by suffix in lower case, most frequent first; `""` for none, `other` for rare and odd ones."""
        counts = [item for item in self._counts.copy().items() if item[1]]  # a copy: another thread may be counting
        return dict(sorted(counts, key=lambda item: (-item[1], item[0])))

    def in_words(self) -> str | None:
        """Return the counts on one line, with how such files are read; None where no file was left out."""
        counts = self.counts
        if not counts:
            return None
        shown = [suffix for suffix in counts if suffix != _OTHER][:_MAX_SHOWN]
        parts = [f"{counts[suffix]} {suffix or 'without a suffix'}" for suffix in shown]
        others = sum(counts.values()) - sum(counts[suffix] for suffix in shown)
        rest = f"{others} other{'s' * (others > 1)}" if others else ""
        words = f"left out: {', '.join(parts)}{' and ' * bool(parts and others)}{rest}"
        formats = [name.lower() for name, suffixes in OPTIONAL_FORMATS.items() if counts.keys() & set(suffixes)]
        if formats:
            words += f"; more formats are decoded with formats={','.join(formats)}"
        if self._archive:
            words += f"; archives in folders are searched if they are named: {shlex.quote(self._archive)}"
        return words
