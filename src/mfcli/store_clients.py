"""The clients of object stores: how they find credentials, regions and endpoints, and what their failures mean.

obstore does the work. botocore finds what the tools of AWS would use, of which obstore knows the environment alone.
"""

import contextlib
import functools
import importlib
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, ParamSpec, TypeVar

from mfcli.errors import EngineError, FailureCode, PictureError, package_error

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})
"""Codes of failures."""
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_REFUSED = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity", "AuthenticationFailed"}
)
_CREDENTIALS_TTL = timedelta(minutes=10)
"""How long the client uses credentials before it asks for them again; botocore refreshes its own in time."""
_CODE = re.compile(r"<Code>(\w+)</Code>")
_BOTOCORE_CODE = re.compile(r"An error occurred \((\w+)\)")
_REGION = re.compile(r"<Region>([\w-]+)</Region>")
_STATUS = re.compile(r"status code: (\d{3})")
_ANOTHER_REGION = re.compile("PermanentRedirect|AuthorizationHeaderMalformed|redirect without LOCATION")


def import_obstore() -> Any:
    """Return the module `obstore`.

    Raises:
        EngineError: it is not installed.
    """
    return _import("obstore")


def interruptible(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a function that waits for a client wait in another thread, so that Ctrl-C need not wait, too."""

    @functools.wraps(function)
    def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        if threading.current_thread() is not threading.main_thread():
            return function(*arguments, **options)
        answer: queue.SimpleQueue[Callable[[], Result]] = queue.SimpleQueue()

        def run() -> None:
            try:
                result = function(*arguments, **options)
                answer.put(lambda: result)
            except BaseException as error:
                answer.put(functools.partial(_raise, error))

        try:
            threading.Thread(target=run, daemon=True, name="mf-store").start()
        except RuntimeError:  # a limit on processes
            return function(*arguments, **options)
        return answer.get()()

    return call


def _raise(error: BaseException) -> NoReturn:
    raise error


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken installation can raise anything
        raise package_error(name.partition(".")[0], error, extra="stores") from error


_lock = threading.Lock()
"""Of many threads, one looks for credentials."""


def open_bucket(bucket: str, timeout_s: float, *, is_bulk: bool = False) -> Any:
    """Return the client of a bucket, the same for equal arguments; see `_make_client`."""
    with _lock:
        return _make_client(bucket, timeout_s, is_bulk)


@functools.lru_cache(maxsize=64)
def _make_client(bucket: str, timeout_s: float, is_bulk: bool) -> Any:
    """Return a new client of a bucket; nothing is requested yet.

    Args:
        bucket: as `store_urls.split_store_url` returns it.
        timeout_s: for one request, and for its retries together.
        is_bulk: whether the time limits single reads, not the whole request.
    """
    scheme, _, name = bucket.rstrip("/").partition("://")
    stores, timeout = _import("obstore.store"), timedelta(seconds=timeout_s)
    limits: dict[str, Any] = {"timeout": timeout}
    if is_bulk:
        limits = {"timeout": timedelta(days=7), "read_timeout": timeout}
    options: dict[str, Any] = {"client_options": limits, "retry_config": {"retry_timeout": timeout}}
    match scheme:
        case "s3":
            config, is_plain = _find_aws_config()
            limits["allow_http"] = is_plain
            return stores.S3Store(name, **config, **options)
        case "gs":
            return stores.GCSStore(name, **options)
        case _:
            return stores.AzureStore(name, **options)


class _AwsCredentials:
    """Gives the client the credentials that botocore finds, as long as these are renewed."""

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def __call__(self) -> dict[str, Any]:
        found = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_TTL,
        }


@functools.cache
def _find_aws_config() -> tuple[dict[str, Any], bool]:
    """Return what the AWS tools would use, as parameters of the client, and whether its endpoint is plain http.

    The client itself reads the environment alone, and not ~/.aws.
    """
    session = _get_session()
    profile, credentials = session.get_scoped_config(), session.get_credentials()
    config: dict[str, Any] = {}
    if credentials is None:
        config["skip_signature"] = True  # as for public buckets
    else:
        config["credential_provider"] = _AwsCredentials(credentials)
    if region := os.environ.get("AWS_REGION") or session.get_config_variable("region"):
        config["region"] = region
    named = (os.environ.get("AWS_ENDPOINT_URL_S3"), os.environ.get("AWS_ENDPOINT_URL"), profile.get("endpoint_url"))
    if endpoint := next(filter(None, named), ""):
        config["endpoint"] = endpoint
    return config, endpoint.startswith("http:")


@functools.cache
def _get_session() -> Any:
    return _import("botocore.session").Session()


def open_botocore(timeout_s: float) -> Any:
    """Return botocore's own client of S3, for what obstore cannot do."""
    with _lock:
        return _make_botocore(timeout_s)


@functools.lru_cache(maxsize=4)
def _make_botocore(timeout_s: float) -> Any:
    found, _ = _find_aws_config()
    limits: dict[str, Any] = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": {"mode": "standard"}}
    if "skip_signature" in found:
        limits["signature_version"] = _import("botocore").UNSIGNED
    if "endpoint" in found:
        limits["s3"] = {"addressing_style": "path"}
    return _get_session().create_client(
        "s3",
        region_name=found.get("region", "us-east-1"),
        endpoint_url=found.get("endpoint"),
        config=_import("botocore.config").Config(**limits),
    )


def _is_anonymous(bucket: str) -> bool:
    return bucket.startswith("s3:") and "skip_signature" in _find_aws_config()[0]


# ------------------------------------------------------------------------------------------------------------- errors


@contextlib.contextmanager
def translate_errors(bucket: str) -> Iterator[None]:
    """Turn whatever the clients raise into a PictureError, without their words."""
    try:
        yield
    except (PictureError, EngineError, MemoryError):
        raise
    except Exception as error:
        raise _to_picture_error(error, bucket) from None  # its text may hold credentials


def _find(pattern: re.Pattern[str], error: Exception) -> str:
    """Return what a pattern finds in the words of a client, else an empty text."""
    match = pattern.search(str(error))
    return match[1] if match else ""


def find_code(error: Exception) -> str:
    """Return the code of a failure that a store sent, else an empty text."""
    return _find(_CODE, error) or _find(_BOTOCORE_CODE, error)


def _to_picture_error(error: Exception, bucket: str) -> PictureError:
    text, kind = str(error), type(error).__name__
    code, status = find_code(error), _find(_STATUS, error)
    if code in NO_BUCKET:
        return PictureError(FailureCode.NOT_FOUND, f"there is no bucket {bucket}")
    if isinstance(error, FileNotFoundError) or code == "NoSuchKey":
        return PictureError(FailureCode.NOT_FOUND, "no such object")
    if isinstance(error, OSError):  # of a file here
        return PictureError(FailureCode.NETWORK, f"cannot be copied: {error.strerror}")
    if code in _EXPIRED:
        return PictureError(FailureCode.PERMISSION, "the credentials have expired")
    if code in _REFUSED:
        return PictureError(FailureCode.PERMISSION, f"the store does not accept the credentials ({code})")
    if _ANOTHER_REGION.search(text):
        region = f"another region, {_find(_REGION, error)}".removesuffix(", ")
        message = f"the bucket is in {region}; AWS_REGION names it, AWS_ENDPOINT_URL another server"
        return PictureError(FailureCode.NETWORK, message)
    if "credential provider" in text:  # what botocore raised for _AwsCredentials
        return PictureError(FailureCode.PERMISSION, "the credentials of AWS cannot be renewed; log in again")
    if status in ("401", "403") or code == "AccessDenied" or kind in ("UnauthenticatedError", "PermissionDeniedError"):
        without = ", and no credentials were found" if _is_anonymous(bucket) else ""
        return PictureError(FailureCode.PERMISSION, f"access is denied{without}")
    if kind in ("InvalidPathError", "ValueError"):
        return PictureError(FailureCode.UNSUPPORTED, "has a key with an empty part, or one that is . or ..: not read")
    if status:
        reason = f"{status} {code}".rstrip()
        return PictureError(FailureCode.NETWORK, f"the store answers {reason}")
    if "TimedOut" in text or "kind: Timeout" in text:
        return PictureError(FailureCode.TIMEOUT, "the store does not answer in time")
    if kind in ("ProfileNotFound", "ConfigParseError", "PartialCredentialsError", "CredentialRetrievalError"):
        return PictureError(FailureCode.PERMISSION, f"the configuration of AWS cannot be used ({kind})")
    if "kind: Connect" in text:
        return PictureError(FailureCode.NETWORK, "the store cannot be reached; AWS_ENDPOINT_URL names another server")
    return PictureError(FailureCode.NETWORK, f"the store cannot be read ({kind})")
