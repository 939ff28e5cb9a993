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
from urllib.parse import urlsplit

from mfcli.errors import FailureCode, MfError, PictureError, UsageError, package_error

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})
"""Codes of failures."""
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_REFUSED = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity", "AuthenticationFailed"}
)
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")  # obstore reads the last one by itself
_PROFILE_ENDPOINT = "endpoint_url of the profile"
_CREDENTIALS_TTL = timedelta(minutes=10)
"""How long the client uses credentials before it asks for them again; botocore refreshes its own in time."""
_CODE = re.compile(r"<Code>(\w+)</Code>")
_BOTOCORE_CODE = re.compile(r"An error occurred \((\w+)\)")
_REGION = re.compile(r"<Region>([\w-]+)</Region>")
_STATUS = re.compile(r"status code: (\d{3})")
_GOOGLE_FILE = re.compile("OpenCredentials|DecodeCredentials|service account file")
_METADATA_SERVER = re.compile(r"169\.254\.169\.254|metadata\.google")
"""Asked for credentials where there are no others."""
_CREDENTIALS = {
    "s3:": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs:": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login",
    "az:": "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
}
"""What gives each store's credentials."""
_ANOTHER_REGION = re.compile("PermanentRedirect|AuthorizationHeaderMalformed|redirect without LOCATION")


def import_obstore() -> Any:
    """Return the module `obstore`.

    Raises:
        EngineError: it is not installed.
    """
    return _import("obstore")


def check_client(url: str) -> None:
    """Check before any work that there is a client for the store of a URL.

    Raises:
        EngineError: it is not installed.
        UsageError: the endpoint of S3 is not an address.
    """
    import_obstore()
    if url.lower().startswith("s3:"):
        with contextlib.suppress(PictureError), translate_errors(url):  # which the row of each picture says
            _find_aws_config()


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
    credentials = session.get_credentials()
    config: dict[str, Any] = {}
    if credentials is None:
        config["skip_signature"] = True  # as for public buckets
    else:
        config["credential_provider"] = _AwsCredentials(credentials)
    if region := os.environ.get("AWS_REGION") or session.get_config_variable("region"):
        config["region"] = region
    _, endpoint = _find_endpoint()
    if endpoint:
        config["endpoint"] = endpoint
    return config, endpoint.lower().startswith("http:")


def _find_endpoint() -> tuple[str, str]:
    """Return what names the endpoint of S3, and the endpoint; empty texts for that of AWS.

    Raises:
        UsageError: it is not an address.
    """
    for variable in _ENDPOINTS:
        if os.environ.get(variable) == "":
            del os.environ[variable]  # unset for the tools of AWS, no address for obstore
    named = [(variable, os.environ.get(variable)) for variable in _ENDPOINTS]
    named.append((_PROFILE_ENDPOINT, _get_session().get_scoped_config().get("endpoint_url")))
    for name, endpoint in named:
        if endpoint:
            _check_endpoint(name, endpoint)
            return name, endpoint
    return "", ""


def _check_endpoint(name: str, endpoint: str) -> None:
    shown = _hide_credentials(endpoint)
    if "://" not in endpoint:
        raise UsageError(f"{name} {shown!r} has no scheme", f"http://{shown}")
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or re.search(r"\s", endpoint):
        raise UsageError(f"{name} {shown!r} is not an address", "http://HOST:PORT or https://HOST")


def _hide_credentials(endpoint: str) -> str:
    scheme, separator, rest = endpoint.rpartition("://")
    return scheme + separator + re.split(r"[?#]", rest.rpartition("@")[2])[0]


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
    """Turn whatever the clients raise into a PictureError, without their words.

    Args:
        bucket: as `store_urls.split_store_url` returns it; one without a name is an error.
    """
    if bucket.endswith(":///"):
        raise PictureError(FailureCode.NOT_FOUND, f"names no bucket: {bucket.removesuffix('/')}BUCKET/KEY")
    try:
        yield
    except (MfError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of obstore, in Rust
            raise
        raise _to_picture_error(error, bucket) from None  # its text may hold credentials


def _find(pattern: re.Pattern[str], error: BaseException) -> str:
    """Return what a pattern finds in the words of a client, else an empty text."""
    match = pattern.search(str(error))
    return match[1] if match else ""


def find_code(error: BaseException) -> str:
    """Return the code of a failure that a store sent, else an empty text."""
    return _find(_CODE, error) or _find(_BOTOCORE_CODE, error)


def _to_picture_error(error: BaseException, bucket: str) -> PictureError:
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
        return PictureError(FailureCode.NETWORK, f"the bucket is in {region}: set AWS_REGION")
    if "credential provider" in text:  # what botocore raised for _AwsCredentials
        return PictureError(FailureCode.PERMISSION, "the credentials of AWS cannot be renewed; log in again")
    if _GOOGLE_FILE.search(text):
        message = "the file of credentials cannot be used: check GOOGLE_APPLICATION_CREDENTIALS"
        return PictureError(FailureCode.PERMISSION, message)
    if "Account must be specified" in text:
        message = "the storage account is not named: set AZURE_STORAGE_ACCOUNT_NAME"
        return PictureError(FailureCode.PERMISSION, message)
    if _METADATA_SERVER.search(text):
        return PictureError(FailureCode.PERMISSION, f"no credentials were found: {_name_credentials(bucket)}")
    if status in ("401", "403") or code == "AccessDenied" or kind in ("UnauthenticatedError", "PermissionDeniedError"):
        without = f", and no credentials were found: {_name_credentials(bucket)}" if _is_anonymous(bucket) else ""
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
    if "kind: Connect" in text or kind == "EndpointConnectionError":
        return PictureError(FailureCode.NETWORK, _tell_unreachable(bucket))
    return PictureError(FailureCode.NETWORK, f"the store cannot be read ({kind})")


def _name_credentials(bucket: str) -> str:
    return _CREDENTIALS[bucket.partition("//")[0]]


def _tell_unreachable(bucket: str) -> str:
    if not bucket.startswith("s3:"):
        return "the store cannot be reached: check the network"
    name, endpoint = _find_endpoint()
    if endpoint:
        return f"{_hide_credentials(endpoint)} ({name}) cannot be reached"
    return "the store cannot be reached: check the network, and the region in AWS_REGION"
