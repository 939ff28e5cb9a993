"""A file of results in an object store: made in the cache like any other, and uploaded as a whole once it is complete.

So the journal of a run that does not end is in the cache of this machine, where a later run can go on with it; from the
object itself, a run can go on on any machine.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from mfcli.errors import FailureCode, OutputError, PictureError
from mfcli.files import exists, open_atomically
from mfcli.outputs.files import has_content, partial_path, translate_write_errors
from mfcli.stores import check_writable, download_object, has_object, upload_file

_TIMEOUT_S = 30.0


class Upload:
    """An object that a local file becomes.

    Attributes:
        url: of the object.
        path: the local file, in a folder of its own.
    """

    def __init__(self, url: str, cache_dir: Path) -> None:
        """Name the object; nothing is requested yet."""
        self.url = url
        folder = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self.path = cache_dir / "uploads" / folder / url.rpartition("/")[2]

    def check(self, *, replace: bool) -> None:
        """Check before any work that the object can be written.

        Args:
            replace: whether an existing object may be replaced.

        Raises:
            OutputError: it cannot, or it exists and may not be replaced.
        """
        with self._translate_errors("name another object: output=FILE", unreachable=None):
            is_there = has_object(self.url, _TIMEOUT_S)
            if not is_there or replace:
                check_writable(self.url, _TIMEOUT_S)
        if is_there and not replace:
            raise OutputError(f"{self.url} exists", "overwrite=True replaces it; resume=True goes on with it")
        with translate_write_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def publish(self, *, resume: bool, replace: bool) -> Iterator[None]:
        """Upload the file at the end, if the body has made it, and then delete it.

        Args:
            resume: whether the body may go on with an existing object, which is then downloaded first.
            replace: whether an object that exists at the end may be replaced.

        Raises:
            OutputError: it cannot be read or written, or was created meanwhile.
        """
        fetched: int | None = None
        if resume:
            fetched = self._fetch()
        else:
            self.path.unlink(missing_ok=True)  # what could not be uploaded
        try:
            yield
        finally:
            if exists(self.path) and self.path.stat().st_mtime_ns != fetched:
                self._upload(replace)
            if not exists(partial_path(self.path)):
                shutil.rmtree(self.path.parent, ignore_errors=True)

    def _fetch(self) -> int | None:
        """Copy the object, unless an earlier run has left a file here; return when the copy was made."""
        if has_content(self.path) or has_content(partial_path(self.path)):
            return None
        hint = "check it, or overwrite=True"
        with self._translate_errors(hint, unreachable=None), translate_write_errors(self.path):
            if not has_object(self.url, _TIMEOUT_S):
                return None
            with open_atomically(self.path) as file:  # a part of it would look like the results of a run
                download_object(self.url, file, _TIMEOUT_S)
            return self.path.stat().st_mtime_ns

    def _upload(self, replace: bool) -> None:
        hint = f"the results are in {self.path}; resume=True uploads them"
        with self._translate_errors(hint, unreachable=hint):
            if not replace and has_object(self.url, _TIMEOUT_S):
                raise OutputError(f"{self.url} was created while this run was in progress", hint)
            upload_file(self.path, self.url, _TIMEOUT_S)

    @contextlib.contextmanager
    def _translate_errors(self, hint: str, *, unreachable: str | None) -> Iterator[None]:
        """Turn the errors of the store into an OutputError, with another hint where it cannot be reached."""
        try:
            yield
        except PictureError as error:
            hint_here = unreachable if error.code in (FailureCode.NETWORK, FailureCode.TIMEOUT) else hint
            raise OutputError(f"cannot write {self.url}: {error.message}", hint_here) from error
