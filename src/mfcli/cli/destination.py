"""Where the results of mf predict go: standard output, or a file that appears whole and can be resumed."""

import contextlib
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mfcli.cli.streams import note, standard_output
from mfcli.errors import OutputError, UsageError
from mfcli.files import exists, is_file
from mfcli.inputs.arguments import is_input_name
from mfcli.outputs.writer import FormatName, MappingWriter, Writer
from mfcli.results import PictureResult
from mfcli.settings import Settings
from mfcli.store_urls import find_store_url

if TYPE_CHECKING:
    from mfcli.cli.layouts import FeatureLayout, Layout
    from mfcli.cli.option_groups import FileOptions
    from mfcli.inference.predictor import Predictor
    from mfcli.outputs.journal import Journal
    from mfcli.outputs.pictures import PictureRenderer
    from mfcli.outputs.upload import Upload

_STANDARD_OUTPUT = Path("-")


def parse_output(output: Path | None) -> Path | None:
    """Return the file that -o names, None for standard output."""
    return None if output == _STANDARD_OUTPUT else output


def refuse_offline(path: Path | str, *, offline: bool) -> None:
    """Check that nothing in an object store is used while offline.

    Raises:
        OutputError: the path is in one, and connections are not allowed.
    """
    if offline and (url := find_store_url(path)):
        raise OutputError(f"{url} cannot be used while offline", "name a local file or folder, or leave out --offline")


def name_leftovers(path: Path | None) -> None:
    """Note the files that killed runs have left beside a file of results."""
    from mfcli.outputs.files import find_leftovers

    for left in find_leftovers(path) if path is not None else []:
        note(f"{left} is left of a run that was killed, and is not needed: rm {shlex.quote(str(left))}")


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

    def map(self, function: Callable[[PictureResult], PictureResult]) -> "Sink":
        """Return a sink that passes each result through a function first."""
        retry_writer = None if self.retry_writer is None else MappingWriter(self.retry_writer, function)
        return Sink(MappingWriter(self.writer, function), self.journal, retry_writer)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where results go, and what happens to an existing file.

    Attributes:
        path: the file; None for standard output.
        layout: how results are written.
        overwrite: whether an existing file is replaced.
        resume: whether an existing file, or what an unfinished run has left of it, is continued.
        retry_failed: whether its failed inputs are classified again.
        upload: makes an object of the file, where one was named; None for others.
    """

    path: Path | None
    layout: "Layout | FeatureLayout"
    overwrite: bool = False
    resume: bool = False
    retry_failed: bool = False
    upload: "Upload | None" = None

    @property
    def name(self) -> str | None:
        """The file or object for people; None for standard output."""
        if self.upload is not None:
            return self.upload.url
        return None if self.path is None else str(self.path)

    @classmethod
    def parse(cls, path: Path | None, layout: "Layout | FeatureLayout", existing: "FileOptions") -> "Destination":
        """Read the options about an existing file.

        Args:
            path: the file; None for standard output.
            layout: how results are written.
            existing: --retry-failed implies --resume.

        Raises:
            UsageError: they contradict one another.
        """
        overwrite, resume = existing.overwrite, existing.resume or existing.retry_failed
        if overwrite and resume:
            raise UsageError("--overwrite and --resume exclude each other", "mf predict --help")
        if path is None and (resume or overwrite):
            raise UsageError("--resume, --retry-failed and --overwrite are about a file", "-o results.jsonl")
        if path is None or (url := find_store_url(path)) is None:
            return cls(path, layout, overwrite, resume, existing.retry_failed)
        from mfcli.outputs.upload import Upload

        upload = Upload(url, Settings.from_environ().cache_dir)
        return cls(upload.path, layout, overwrite, resume, existing.retry_failed, upload)

    def check(self, names: list[str], *, offline: bool) -> None:
        """Check before any work that the file may be written.

        Args:
            names: the inputs and the list of inputs.
            offline: whether objects cannot be written.

        Raises:
            OutputError: it or its unfinished form exists, is an input or the list, or has the suffix of a picture or an
                archive.
        """
        from mfcli.outputs.files import refuse_existing

        if self.path is None:
            return
        if self.upload is not None:
            if self.upload.url in names:
                raise OutputError(f"{self.upload.url} is an input", "name another object with -o")
            refuse_offline(self.upload.url, offline=offline)
            self.upload.check(replace=self.overwrite or self.resume)
        if not (self.overwrite or self.resume):
            refuse_existing(self.path, resumable=True)
        if is_input_name(str(self.path)) and is_file(self.path):
            raise OutputError(f"{self.path} has the name of a picture or an archive", "name another file with -o")
        for name in names:
            with contextlib.suppress(OSError, ValueError):
                if self.path.is_file() and self.path.samefile(name):
                    raise OutputError(f"{self.path} is an input", "name another file with -o")

    @contextlib.contextmanager
    def open(
        self, predictor: "Predictor", *, compact: bool, quiet: bool, renderer: "PictureRenderer | None" = None
    ) -> Iterator[Sink]:
        """Open it for the results of one run.

        Args:
            predictor: makes the results; a file that is continued holds rows of its run alone.
            compact: whether a table on standard output has one line per picture.
            quiet: whether nothing is said about an unfinished file.
            renderer: draws pictures beside their tables on standard output; None for no pictures.

        Raises:
            OutputError: it cannot be written, or holds the rows of another run.
        """
        if self.path is None:
            with standard_output() as stream:
                yield Sink(self.layout.open_writer(stream, compact=compact, renderer=renderer))
        elif exists(self.path) and not is_file(self.path):
            with self._open_special(self.path) as sink:
                yield sink
        else:
            with contextlib.ExitStack() as stack:
                if self.upload is not None:
                    replace = self.overwrite or self.resume
                    stack.enter_context(self.upload.publish(resume=self.resume, replace=replace))
                yield stack.enter_context(self._open_file(self.path, predictor, quiet))

    @contextlib.contextmanager
    def _open_special(self, path: Path) -> Iterator[Sink]:
        """Open a terminal, pipe or device, which gets the results as they come."""
        from mfcli.outputs.files import atomic_output

        if self.resume:
            raise OutputError(f"{path} is not a regular file", "only such a file can be resumed")
        with atomic_output(path) as stream:
            yield Sink(self.layout.open_writer(stream, compact=True))

    @contextlib.contextmanager
    def _open_file(self, path: Path, predictor: "Predictor", quiet: bool) -> Iterator[Sink]:
        from mfcli.outputs.files import is_compressed, refuse_existing, translate_write_errors
        from mfcli.outputs.result_file import ResultFile

        if not (self.overwrite or self.resume):
            refuse_existing(path, resumable=True)  # again: preparing a model may have taken a while
        is_journal = self.layout.format is FormatName.JSONL and not is_compressed(path)
        file = ResultFile(
            path,
            predictor.settings,
            None if is_journal else partial(self.layout.open_writer, compact=True),
            overwrite=self.overwrite,
            resume=self.resume,
            retry_failed=self.retry_failed,
        )
        with (
            announce_unfinished(file.partial, quiet),
            contextlib.closing(file.journal),
            translate_write_errors(file.partial),
        ):
            yield Sink(file, file.journal, file.retry_writer)


@contextlib.contextmanager
def announce_unfinished(partial: Path, quiet: bool) -> Iterator[None]:
    """Say after an exception where the rows so far are."""
    try:
        yield
    except BaseException as error:
        if not quiet and exists(partial):
            cause = "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped"
            note(f"{cause}: {partial} holds what was done; resume=True goes on")
        raise
