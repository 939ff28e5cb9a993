"""The folder that a training writes: it takes its name when it is complete, and is never replaced by accident.

Until then everything is in a hidden folder beside it, `.NAME.part`, which one process at a time works in:

- `model/` becomes the folder;
- `old/` is the folder that it replaces, between the two renames;
- `state/` is what an interrupted fine-tuning goes on from.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfcli.errors import OutputError, UsageError
from mfcli.files import write_atomically
from mfcli.models.own import ARGS_FILE
from mfcli.models.registry import VARIANTS
from mfcli.outputs.training import METRICS_FILE
from mfcli.signals import defer_signals
from mfcli.store_urls import find_store_url
from mfcli.training.request import TrainRequest

STATE_FILE = "last.pt"
"""In `state/`, what a fine-tuning goes on from."""


def check_name(request: TrainRequest) -> None:
    """Check the request before anything is written.

    Raises:
        UsageError: the name is empty, or that of another model or of an object, or the folder is to be both replaced
            and kept.
    """
    name = request.output.name
    if url := find_store_url(request.output):
        raise UsageError(f"{url}: a model cannot be in an object store", "output=runs/NAME")
    if request.overwrite and request.resume:
        raise UsageError("overwrite=True and resume=True exclude each other", "leave one of them out")
    if name.lower() in VARIANTS or not name.isprintable() or name in ("", "..", "bundled"):
        raise UsageError(f"{name!r} cannot be the name of a model of yours", "output=runs/NAME")


def read_finished(request: TrainRequest) -> dict[str, Any] | None:
    """Return the figures of a finished training that is to be resumed; None if the folder is missing or empty.

    Raises:
        OutputError: the folder may not be replaced.
        UsageError: it comes from other arguments.
    """
    folder = request.output
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not (folder / ARGS_FILE).is_file():
        raise OutputError(f"{folder} is not a folder of mf train", "name another one: output=runs/NAME")
    if request.overwrite:
        return None
    if not request.resume:
        raise OutputError(
            f"{folder} exists", "overwrite=True replaces it, resume=True keeps it if its arguments are the same"
        )
    check_arguments(request, folder / ARGS_FILE)
    try:
        metrics: dict[str, Any] = json.loads((folder / METRICS_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise _incomplete(folder) from error
    return metrics


def check_arguments(request: TrainRequest, path: Path) -> None:
    """Check that a file of arguments has those of a request.

    Raises:
        OutputError: it is damaged.
        UsageError: it has others.
    """
    try:
        args = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _incomplete(request.output) from error
    wanted = json.loads(json.dumps(request.list_arguments()))
    if different := [name for name, value in wanted.items() if args.get(name) != value]:
        raise UsageError(
            f"{request.output} was trained with another {', '.join(different)}", "overwrite=True replaces it"
        )


def _incomplete(folder: Path) -> OutputError:
    return OutputError(f"{folder} is incomplete or damaged", "overwrite=True replaces it")


@dataclass(frozen=True, slots=True)
class NewFolder:
    """A folder that is being written.

    Attributes:
        target: its name in the end.
        work: the hidden folder beside it.
    """

    target: Path
    work: Path

    @property
    def state(self) -> Path:
        """What an interrupted fine-tuning goes on from."""
        return self.work / "state"

    @property
    def _model(self) -> Path:
        return self.work / "model"

    @property
    def _old(self) -> Path:
        return self.work / "old"

    def clean(self) -> None:
        """Bring back the folder that a process was killed while replacing, and remove what else is of no use."""
        with contextlib.suppress(OSError):
            if self._old.exists() and not self.target.exists():
                self._old.replace(self.target)
            for path in (self._old, self._model, *([] if (self.state / STATE_FILE).exists() else [self.state])):
                shutil.rmtree(path, ignore_errors=True)

    def prepare_state(self, request: TrainRequest) -> None:
        """Keep the state of an interrupted fine-tuning if it is to be resumed, and remove it if it is to be replaced.

        Raises:
            OutputError: neither is asked for, or it cannot be written.
            UsageError: it comes from other arguments.
        """
        args = self.state / ARGS_FILE
        try:
            if request.overwrite or not self.state.exists():
                shutil.rmtree(self.state, ignore_errors=True)
            elif not request.resume:
                what = f"a fine-tuning of {self.target} was interrupted"
                raise OutputError(what, "resume=True goes on, overwrite=True begins again")
            else:
                check_arguments(request, args)
            if request.finetune:
                write_atomically(args, json.dumps(request.list_arguments()).encode())
        except OSError as error:
            raise _cannot_write(self.target, error) from error

    @contextlib.contextmanager
    def write(self) -> Iterator[Path]:
        """Yield an empty folder, which takes its place at the end, as a whole.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            self._model.mkdir()
            yield self._model
            with defer_signals():
                if self.target.exists():
                    self.target.replace(self._old)
                self._model.replace(self.target)
            shutil.rmtree(self.work, ignore_errors=True)
        except OSError as error:
            raise _cannot_write(self.target, error) from error


@contextlib.contextmanager
def hold_folder(target: Path) -> Iterator[NewFolder]:
    """Yield a folder to write, which no other process writes meanwhile.

    Raises:
        OutputError: another process writes it, or it cannot be written.
    """
    folder = NewFolder(target, target.with_name(f".{target.name}.part"))
    try:
        descriptor = _hold(folder)
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        folder.clean()
        yield folder
    finally:
        if _is_open_as(descriptor, folder.work):  # else it is complete
            folder.clean()
            with contextlib.suppress(OSError):  # there is a state
                folder.work.rmdir()
        os.close(descriptor)


def _hold(folder: NewFolder) -> int:
    """Return a descriptor of the folder to work in; its lock ends with it, and with the process.

    Raises:
        OutputError: another process holds it.
        OSError: it cannot be made.
    """
    while True:
        folder.work.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder.work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(
                f"another mf train is writing {folder.target}", "wait for it, or name another folder: output=runs/NAME"
            ) from error
        except OSError:
            pass  # a file system without locks
        if _is_open_as(descriptor, folder.work):
            return descriptor
        os.close(descriptor)  # the other process has just completed it


def _is_open_as(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _cannot_write(target: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {target}: {error.strerror or error}", "name another folder: output=DIR")
