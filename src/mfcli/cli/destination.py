"""Where the results of mf predict go: standard output, a file that appears whole, or a journal that can be resumed."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mfcli.cli.streams import note, standard_output
from mfcli.errors import OutputError, UsageError
from mfcli.files import exists, is_file
from mfcli.inputs.arguments import is_input_name
from mfcli.outputs.writer import FormatName, LabelType, Writer

if TYPE_CHECKING:
    from mfcli.inference.predictor import Predictor
    from mfcli.outputs.journal import Journal
    from mfcli.outputs.pictures import PictureRenderer

_STANDARD_OUTPUT = Path("-")
_OTHER_SUFFIXES = {"ndjson": "jsonl", "txt": "table"}


@dataclass(frozen=True, slots=True)
class Sink:
    """What a run writes to while its output is open.

    Attributes:
        writer: gets the results.
        journal: knows which inputs are finished; None where the output cannot be resumed.
        retry_writer: gets the results of inputs that had failed; None where those are skipped.
    """

    writer: Writer
    journal: "Journal | None" = None
    retry_writer: Writer | None = None


@dataclass(frozen=True, slots=True)
class Destination:
    """Where results go, and what happens to a file that is there.

    Attributes:
        path: the file; None for standard output.
        format: how results are written.
        overwrite: whether a file that is there is replaced.
        resume: whether a journal that is there is continued.
        retry_failed: whether its failed inputs are classified again.
        label_type: what a table shows of a class.
    """

    path: Path | None
    format: FormatName
    overwrite: bool = False
    resume: bool = False
    retry_failed: bool = False
    label_type: LabelType = LabelType.NAME

    @classmethod
    def parse(
        cls,
        output: Path | None,
        format: FormatName | None,
        *,
        overwrite: bool,
        resume: bool,
        retry_failed: bool,
        label_type: LabelType | None,
    ) -> "Destination":
        """Read the output options.

        Args:
            output: the file, `-` or None for standard output.
            format: None for the one that the file's suffix names, or a table.
            overwrite: --overwrite.
            resume: --resume.
            retry_failed: --retry-failed, which implies --resume.
            label_type: --label-type, which is about tables.

        Raises:
            UsageError: they contradict one another, or the suffix names no format.
        """
        resume = resume or retry_failed
        path = None if output == _STANDARD_OUTPUT else output
        if overwrite and resume:
            raise UsageError("--overwrite and --resume exclude each other", "mf predict --help")
        if path is None and (resume or overwrite):
            raise UsageError("--resume, --retry-failed and --overwrite are about a file", "-o results.jsonl")
        if format is None:
            format = FormatName.TABLE if path is None else _format_of_suffix(path)
        if resume and format is not FormatName.JSONL:
            raise UsageError(f"only jsonl can be resumed, not {format}", "-o results.jsonl")
        if label_type is not None and format is not FormatName.TABLE:
            raise UsageError(f"--label-type is about tables: {format} has names, wnids and indices", "leave it out")
        return cls(path, format, overwrite, resume, retry_failed, label_type or LabelType.NAME)

    def check(self, names: list[str]) -> None:
        """Check before any work that the file may be written.

        Args:
            names: the inputs and the list of inputs.

        Raises:
            OutputError: it exists, is an input or the list, or has the suffix of a picture or an archive.
        """
        from mfcli.outputs.files import refuse_existing

        if self.path is None:
            return
        if not (self.overwrite or self.resume):
            refuse_existing(self.path)
        if is_input_name(str(self.path)) and is_file(self.path):
            raise OutputError(f"{self.path} has the name of a picture or an archive", "name another file with -o")
        for name in names:
            with contextlib.suppress(OSError, ValueError):
                if self.path.is_file() and self.path.samefile(name):
                    raise OutputError(f"{self.path} is an input", "name another file with -o")

    @contextlib.contextmanager
    def open(self, predictor: "Predictor", compact: bool, renderer: "PictureRenderer | None" = None) -> Iterator[Sink]:
        """Open it for the results of one run.

        Args:
            predictor: makes the results; a journal holds rows of its run alone.
            compact: whether a table on standard output has one line per picture.
            renderer: draws pictures beside their tables on standard output; None for no pictures.

        Raises:
            OutputError: it cannot be written, or holds the rows of another run.
        """
        from mfcli.outputs import open_writer
        from mfcli.outputs.files import atomic_output

        if self.path is None:
            with standard_output() as stream:
                yield Sink(
                    open_writer(self.format, stream, compact=compact, label_type=self.label_type, renderer=renderer)
                )
        elif self.format is not FormatName.JSONL or (exists(self.path) and not is_file(self.path)):
            with atomic_output(self.path, replace=self.overwrite) as stream:
                yield Sink(open_writer(self.format, stream, compact=True, label_type=self.label_type))
        else:
            with self._open_journal(predictor) as sink:
                yield sink

    @contextlib.contextmanager
    def _open_journal(self, predictor: "Predictor") -> Iterator[Sink]:
        from mfcli.outputs import open_writer
        from mfcli.outputs.files import refuse_existing, translate_write_errors
        from mfcli.outputs.journal import Journal

        assert self.path is not None  # a journal is a file
        if not (self.overwrite or self.resume):
            refuse_existing(self.path)  # again: preparing a model may have taken a while
        # without resume the file is new, empty or to be overwritten: refused above otherwise
        journal = Journal(self.path, predictor.settings, overwrite=not self.resume, retry_failed=self.retry_failed)
        with contextlib.closing(journal), translate_write_errors(self.path):
            retry_writer = None if journal.retries is None else open_writer(self.format, journal.retries)
            yield Sink(open_writer(self.format, journal.rows), journal, retry_writer)

    @contextlib.contextmanager
    def report_interrupt(self, quiet: bool) -> Iterator[None]:
        """After an interrupt, say where this run's results are, if there are any."""
        before = self._fingerprint()
        try:
            yield
        except KeyboardInterrupt:
            if not quiet and self._fingerprint() not in (None, before):
                go_on = "; --resume goes on" if self.format is FormatName.JSONL else ""
                note(f"interrupted: {self.path} holds what was done{go_on}")
            raise

    def _fingerprint(self) -> tuple[int, int, int] | None:
        """Inode, size and modification time of a file with results; None where there is none."""
        with contextlib.suppress(OSError):
            if self.path is not None and (status := self.path.stat()).st_size:
                return status.st_ino, status.st_size, status.st_mtime_ns
        return None


def _format_of_suffix(path: Path) -> FormatName:
    suffix = path.suffix.lower().removeprefix(".")
    suffix = _OTHER_SUFFIXES.get(suffix, suffix)
    if suffix not in list(FormatName):
        raise UsageError(f"the suffix of {path} names no format", f"add --format, one of {', '.join(FormatName)}")
    return FormatName(suffix)
