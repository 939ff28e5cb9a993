"""Everything that can go wrong, as one family of exceptions.

Each error carries what happened, the next step for the user, and the exit code of the command line. Lower layers turn
foreign exceptions (Pillow, ONNX Runtime, OSError) into these where they meet them; `cli.main` is the only place that
catches them. Messages name parameters (`top_k=0`), which the command line shows as its flags (`--top-k 0`).
"""

from enum import IntEnum, StrEnum

_OUT_OF_MEMORY = (
    "bad_alloc",
    "failed to map segment",
    "annot allocate memory",
    "ailed to allocate memory",
    "out of memory",
    "ALLOC_FAILED",
)
"""What loaders and runtimes say if memory has run out."""


class ExitCode(IntEnum):
    """The exit codes of the command line."""

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
    NOTHING_FOUND = 10
    INTERRUPTED = 130


class MfError(Exception):
    """A failure that the user can act on.

    Attributes:
        message: what happened, one sentence without a full stop.
        hint: the next step, a command where there is one; None where the message says it all.
        exit_code: of the command line, when this error ends it.
    """

    exit_code = ExitCode.BUG

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(MfError):
    """A parameter, or a combination of them, is not valid."""

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


class BatchTooLargeError(EngineError):
    """An engine has too little memory for a batch; a smaller one may fit."""


class OutputError(MfError):
    """A result or a file of the cache cannot be written, or the cache cannot be read."""

    exit_code = ExitCode.OUTPUT


class CheckError(MfError):
    """A requested check failed."""

    exit_code = ExitCode.CHECK_FAILED


class TooManyFailuresError(MfError):
    """More pictures failed than max_failures allows."""

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
        self.args = (code, message)  # what pickle passes
        self.code = code


def escape_control_characters(text: str) -> str:
    """Return `text` with control characters escaped, so that a file's name cannot control a terminal or break a row."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """Return what an exception says as one line; its type's name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: Exception) -> str:
    """Return the first line of what an exception says; runtimes append stack traces."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def hint_at_permissions(error: OSError) -> str | None:
    """Return the next step after a file could not be read; None where the error says it all."""
    return "check its permissions" if isinstance(error, PermissionError) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory has run out; runtimes say it in words alone."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def memory_error(doing: str, kind: type[EngineError] = EngineError) -> EngineError:
    """Return the error of a run that is short of memory.

    Args:
        doing: what there is too little memory for: "load onnxruntime".
        kind: its class.
    """
    return kind(
        f"there is too little memory to {doing}",
        "use less: batch_size=1 workers=1 threads=1; or raise the limit: ulimit -v, or that of the container",
    )


def threads_error(number: int, error: RuntimeError) -> EngineError:
    """Return the error of threads that cannot be started: memory is short, or there is a limit on processes."""
    return EngineError(
        f"cannot start {number} threads ({error}): there is too little memory, or a limit on processes",
        "threads=1 workers=1, or raise the limits: ulimit -v, ulimit -u",
    )


def package_error(package: str, error: Exception, extra: str | None = None) -> EngineError:
    """Return the error of a package that is not installed, or cannot be loaded.

    Args:
        package: its name.
        error: what importing it raised.
        extra: the optional dependencies of this package that it belongs to.
    """
    if is_out_of_memory(error):
        return memory_error(f"load {package}")
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        wanted = f"'metaformer-cli[{extra}]'" if extra else package
        return EngineError(f"{package} is not installed", f"pip install {wanted}")
    return EngineError(f"{package} cannot be loaded: {first_line(error)}", f"pip install --force-reinstall {package}")
