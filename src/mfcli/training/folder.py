"""The folder that a training writes: it takes its name when it is complete, and is never replaced by accident."""

import contextlib
import glob
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mfcli.errors import OutputError, UsageError
from mfcli.models.own import ARGS_FILE
from mfcli.models.registry import VARIANTS
from mfcli.outputs.training import METRICS_FILE
from mfcli.signals import defer_signals
from mfcli.training.request import TrainRequest


def read_finished(request: TrainRequest) -> dict[str, Any] | None:
    """Return the figures of a finished training that is to be resumed; None where there is nothing yet.

    Raises:
        OutputError: something is there that may not be replaced.
        UsageError: it comes from other arguments, or the name is that of another model.
    """
    folder = request.output
    if request.overwrite and request.resume:
        raise UsageError("overwrite=True and resume=True exclude each other", "leave one of them out")
    if folder.name.lower() in VARIANTS or not folder.name.isprintable() or folder.name in ("", "..", "bundled"):
        raise UsageError(f"{folder.name!r} cannot be the name of a model of yours", "-o runs/NAME")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not (folder / ARGS_FILE).is_file():
        raise OutputError(f"{folder} is not a folder of mf train", "name another one: -o runs/NAME")
    if request.overwrite:
        return None
    if not request.resume:
        raise OutputError(f"{folder} exists", "overwrite=True replaces it")
    try:
        args = json.loads((folder / ARGS_FILE).read_bytes())
        metrics: dict[str, Any] = json.loads((folder / METRICS_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder} is incomplete or damaged", "overwrite=True replaces it") from error
    wanted = json.loads(json.dumps(request.list_arguments()))
    if different := [name for name, value in wanted.items() if args.get(name) != value]:
        raise UsageError(f"{folder} was trained with another {', '.join(different)}", "overwrite=True replaces it")
    return metrics


def _list_left(target: Path, part: str) -> list[Path]:
    """Return the hidden folders that killed processes have left beside a folder."""
    return sorted(target.parent.glob(f".{glob.escape(target.name)}.*.{part}"))


def restore(target: Path) -> None:
    """Bring back the folder that a process was killed while replacing, and remove it where it was replaced."""
    with contextlib.suppress(OSError):
        for old in _list_left(target, "old"):
            shutil.rmtree(old) if target.exists() else old.replace(target)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder beside the target that takes its place at the end, as a whole.

    Raises:
        OutputError: it cannot be written.
    """
    new, old = (target.with_name(f".{target.name}.{os.getpid()}.{part}") for part in ("part", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in _list_left(target, "part"):
            shutil.rmtree(left, ignore_errors=True)
        new.mkdir()
        yield new
        with defer_signals():
            if target.exists():
                target.replace(old)
            new.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}", "name another folder: -o DIR") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        restore(target)
