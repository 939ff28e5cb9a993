"""Everything that can go wrong, as one family of exceptions.

Each error carries what happened, the next step for the user, and the exit code of the command line. Lower
layers turn foreign exceptions (Pillow, ONNX Runtime, OSError) into these once, at the point where they meet
them; `cli.main` is the only place that catches them.
"""

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """What the process tells its caller."""

    OK = 0
    BUG = 1
    USAGE = 2
    NO_INPUTS = 3
    MODEL = 4
    SOME_FAILED = 5
    ALL_FAILED = 6
    ENGINE = 7
    OUTPUT = 8
    CHECK_FAILED = 9
    INTERRUPTED = 130


class MfError(Exception):
    """A failure that the user can do something about.

    Attributes:
        message: what happened, one sentence without a full stop.
        hint: the next step, a command where there is one; None where nothing better than the message is known.
        exit_code: what the process exits with when nothing catches the error before.
    """

    exit_code = ExitCode.BUG

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MfError):
    """The command line asks for something that cannot be."""

    exit_code = ExitCode.USAGE


class NoInputsError(MfError):
    """There is nothing to classify."""

    exit_code = ExitCode.NO_INPUTS


class ModelError(MfError):
    """A model name is unknown, or its weights are missing, damaged or of another model."""

    exit_code = ExitCode.MODEL


class EngineError(MfError):
    """An engine or a device cannot do the work."""

    exit_code = ExitCode.ENGINE


class OutputError(MfError):
    """A result cannot be written, or a file that the work needs cannot be written or, in the cache, read."""

    exit_code = ExitCode.OUTPUT


class CheckError(MfError):
    """A check that was asked for came out negative."""

    exit_code = ExitCode.CHECK_FAILED


class TooManyFailuresError(MfError):
    """More pictures failed than the user bears."""

    exit_code = ExitCode.SOME_FAILED


class FailureCode(StrEnum):
    """Why one picture has no predictions; the `error.code` of a row."""

    NOT_FOUND = "not_found"
    PERMISSION = "permission"
    DECODE = "decode"
    TRUNCATED = "truncated"
    TOO_LARGE = "too_large"
    UNSUPPORTED = "unsupported"
    NETWORK = "network"
    TIMEOUT = "timeout"


class PictureError(MfError):
    """One picture cannot be classified; the others can."""

    exit_code = ExitCode.SOME_FAILED

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def escape_control_characters(text: str) -> str:
    """Return `text` with control characters escaped, so that a file's name cannot steer a terminal or break a row."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """Return what an exception says as one line; its type's name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: Exception) -> str:
    """Return what a runtime's exception says, without what follows the first line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def package_error(package: str, error: Exception) -> EngineError:
    """Return the error of a package that is not installed, or cannot be loaded."""
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        return EngineError(f"{package} is not installed", f"pip install {package}")
    return EngineError(f"{package} cannot be loaded: {first_line(error)}", f"pip install --force-reinstall {package}")
