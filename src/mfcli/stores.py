"""Objects in the stores of clouds: s3://BUCKET/KEY, gs://BUCKET/KEY and az://CONTAINER/KEY, read, listed and written.

Keys are taken as they are: nothing in them is percent-encoded. Credentials, regions and endpoints come from where each
cloud's own tools find them. What the clients say may hold credentials, so that no message repeats it.
"""

import contextlib
import functools
import importlib
import io
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, BinaryIO

from mfcli.errors import EngineError, FailureCode, PictureError, package_error
from mfcli.files import url_scheme

SCHEMES = ("s3", "gs", "az")
HUB_SCHEME = "hf"
"""Data sets of the Hugging Face hub, which are read alone; see inputs/hub_datasets.py."""
_CREDENTIALS_TTL = timedelta(minutes=10)
"""How long the client uses credentials before it asks for them again; botocore refreshes its own in time."""
_CHUNK_BYTES = 2**23
_PAGE = 1000
_CODE = re.compile(r"<Code>(\w+)</Code>")
_BOTOCORE_CODE = re.compile(r"An error occurred \((\w+)\)")
_REGION = re.compile(r"<Region>([\w-]+)</Region>")
_JOINED = re.compile(rf"({'|'.join(SCHEMES)}):/([^/].*)", re.IGNORECASE | re.DOTALL)
_STATUS = re.compile(r"status code: (\d{3})")
_ANOTHER_REGION = re.compile("PermanentRedirect|AuthorizationHeaderMalformed|redirect without LOCATION")
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_REFUSED = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity", "AuthenticationFailed"}
)
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that was listed.

    Attributes:
        key: its name in the bucket.
        size_bytes: its size.
        etag: its version, as the store calls it.
    """

    key: str
    size_bytes: int
    etag: str | None = None


def is_store_url(name: str) -> bool:
    """Return whether a name is that of an object, or of all whose keys begin with it, in a store or on the hub."""
    return url_scheme(name) in (*SCHEMES, HUB_SCHEME)


def find_store_url(path: str | Path) -> str | None:
    """Return the URL that a path was made from, which has joined its slashes; None for an ordinary one."""
    match = _JOINED.fullmatch(str(path))
    return f"{match[1].lower()}://{match[2]}" if match else None


def split_store_url(url: str) -> tuple[str, str]:
    """Return scheme and bucket as `s3://bucket/`, and the key; the bucket of the hub is `hf://datasets/OWNER/NAME/`."""
    scheme, _, rest = url.partition("://")
    depth = 3 if scheme.lower() == HUB_SCHEME else 1
    parts = rest.split("/")
    return f"{scheme.lower()}://{'/'.join(parts[:depth])}/", "/".join(parts[depth:])


# --------------------------------------------------------------------------------------------------------- operations


def list_objects(url: str, timeout_s: float) -> Iterator[StoredObject]:
    """Yield the objects whose keys begin with that of `url`, in the order of their keys, a page at a time.

    Args:
        url: of a bucket, or with the first characters of keys.
        timeout_s: for one page, retries included.

    Raises:
        PictureError: permission, network, timeout, not_found for a bucket, or, but not in S3, unsupported for a key
            with an empty part, at which the listing ends.
        EngineError: the client is not installed.
    """
    bucket, prefix = split_store_url(url)
    folder, _, start = prefix.rpartition("/")
    obstore = _import_obstore()
    with _translate_errors(bucket):
        last = prefix if start else None  # a listing begins after it; the object of this very name is asked for below
        store = _open_bucket(bucket, timeout_s)
        if last is not None:
            with contextlib.suppress(FileNotFoundError):
                yield _describe(obstore.head(store, prefix))
        try:
            for page in obstore.list(store, folder or None, offset=last, chunk_size=_PAGE):
                for found in page:
                    if not found["path"].startswith(prefix):
                        return
                    last = found["path"]
                    yield _describe(found)
        except obstore.exceptions.InvalidPathError:
            if not bucket.startswith("s3:"):
                raise
            yield from _list_odd_keys(bucket, prefix, last or "", timeout_s)


def _list_odd_keys(bucket: str, prefix: str, last: str, timeout_s: float) -> Iterator[StoredObject]:
    """Go on with a listing of S3 in which there are keys that obstore does not know: with empty parts, `.` or `..`."""
    pages = _open_botocore(timeout_s).get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket[len("s3://") : -1], Prefix=prefix, StartAfter=last):
        for found in page.get("Contents", ()):
            yield StoredObject(found["Key"], found["Size"], found["ETag"])


def _describe(found: Any) -> StoredObject:
    return StoredObject(found["path"], int(found["size"]), found["e_tag"])


def read_object(url: str, timeout_s: float, max_bytes: int) -> BinaryIO:
    """Return the bytes of an object.

    Args:
        url: of the object.
        timeout_s: for one try, and for the retries together.
        max_bytes: the largest object that is read.

    Raises:
        PictureError: not_found, permission, too_large, network, timeout, or unsupported for a key that cannot be read.
        EngineError: the client is not installed.
    """
    bucket, key = split_store_url(url)
    is_odd = bucket.startswith("s3:") and _is_odd(key)
    bucket, key = (bucket, key) if is_odd else _split_checked(url)
    with _translate_errors(bucket):
        if is_odd:
            answer = _open_botocore(timeout_s).get_object(Bucket=bucket[len("s3://") : -1], Key=key)
            size_bytes, read = answer["ContentLength"], answer["Body"].read
        else:
            found = _import_obstore().get(_open_bucket(bucket, timeout_s), key)
            size_bytes, read = found.meta["size"], found.bytes
        if size_bytes > max_bytes:
            raise PictureError(FailureCode.TOO_LARGE, f"is over {max_bytes} bytes")
        return io.BytesIO(read())


def identify_object(url: str, timeout_s: float) -> str:
    """Return what tells an object from others, and from other versions of itself; see `read_object`."""
    bucket, key = _split_checked(url)
    with _translate_errors(bucket):
        found = _import_obstore().head(_open_bucket(bucket, timeout_s), key)
        return f"{bucket}{key}\n{found['e_tag']}\n{found['size']}\n{found['last_modified']}"


def download_object(url: str, file: IO[bytes], timeout_s: float) -> None:
    """Write an object of any size into a file; see `read_object`."""
    bucket, key = _split_checked(url)
    with _translate_errors(bucket):
        found = _import_obstore().get(_open_bucket(bucket, timeout_s, is_bulk=True), key)
        for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
            file.write(chunk)
    file.flush()


def _split_checked(url: str) -> tuple[str, str]:
    """Split a URL whose key the client keeps as it is.

    Raises:
        PictureError: unsupported.
    """
    bucket, key = split_store_url(url)
    if _is_odd(key):
        raise PictureError(FailureCode.UNSUPPORTED, "its key has an empty part, or one that is . or ..: not read")
    return bucket, key


def _is_odd(key: str) -> bool:
    """Return whether obstore would change a key, or refuse it."""
    return any(part in ("", ".", "..") for part in key.split("/"))


def has_object(url: str, timeout_s: float) -> bool:
    """Return whether there is an object; see `read_object`."""
    bucket, key = _split_checked(url)
    with _translate_errors(bucket):
        try:
            _import_obstore().head(_open_bucket(bucket, timeout_s), key)
        except FileNotFoundError:
            return False
        return True


def check_writable(url: str, timeout_s: float) -> None:
    """Check that an object may be written, by a request that is never carried out; see `read_object`.

    It is to replace a version that does not exist, of an object beside this one. A store that does not know such
    conditions writes that object, which is then deleted.
    """
    bucket, key = _split_checked(url)
    obstore, store, beside = _import_obstore(), _open_bucket(bucket, timeout_s), f"{key}.partial"
    with _translate_errors(bucket):
        try:
            obstore.put(store, beside, b"", mode={"e_tag": '"0"', "version": "1"}, use_multipart=False)
        except (FileNotFoundError, NotImplementedError, obstore.exceptions.PreconditionError) as error:
            if _find(_CODE, error) in _NO_BUCKET:
                raise
            return
        except obstore.exceptions.GenericError as error:
            if _find(_CODE, error) != "NotImplemented":
                raise
            return
        obstore.delete(store, beside)


def write_object(url: str, data: bytes, timeout_s: float) -> None:
    """Write an object, which appears as a whole; see `read_object`."""
    bucket, key = _split_checked(url)
    with _translate_errors(bucket):
        _import_obstore().put(_open_bucket(bucket, timeout_s), key, data, use_multipart=False)


def create_object(url: str, data: bytes, timeout_s: float) -> None:
    """Write an object, unless there is one; see `read_object`."""
    bucket, key = _split_checked(url)
    obstore = _import_obstore()
    with _translate_errors(bucket), contextlib.suppress(obstore.exceptions.AlreadyExistsError):
        obstore.put(_open_bucket(bucket, timeout_s), key, data, mode="create", use_multipart=False)


def delete_object(url: str, timeout_s: float) -> None:
    """Delete an object, if there is one; see `read_object`."""
    bucket, key = _split_checked(url)
    with _translate_errors(bucket), contextlib.suppress(FileNotFoundError):
        _import_obstore().delete(_open_bucket(bucket, timeout_s), key)


def upload_file(path: Path, url: str, timeout_s: float) -> None:
    """Write a file into an object, which appears as a whole; large ones are uploaded in parts; see `read_object`."""
    bucket, key = _split_checked(url)
    with _translate_errors(bucket):
        _import_obstore().put(_open_bucket(bucket, timeout_s, is_bulk=True), key, path, chunk_size=_CHUNK_BYTES)


# -------------------------------------------------------------------------------------------------------- the clients


def _import_obstore() -> Any:
    return _import("obstore")


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken installation can raise anything
        raise package_error(name.partition(".")[0], error, extra="stores") from error


def check_stores() -> None:
    """Check that the clients are installed.

    Raises:
        EngineError: they are not.
    """
    _import_obstore()


_lock = threading.Lock()
"""Of many threads, one looks for credentials."""


def _open_bucket(bucket: str, timeout_s: float, *, is_bulk: bool = False) -> Any:
    """Return the client of a bucket, the same for equal arguments; see `_make_client`."""
    with _lock:
        return _make_client(bucket, timeout_s, is_bulk)


@functools.lru_cache(maxsize=64)
def _make_client(bucket: str, timeout_s: float, is_bulk: bool) -> Any:
    """Return a new client of a bucket; nothing is requested yet.

    Args:
        bucket: as `split_store_url` returns it.
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


@functools.lru_cache(maxsize=4)
def _open_botocore(timeout_s: float) -> Any:
    """Return botocore's own client of S3, for what obstore cannot do."""
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
def _translate_errors(bucket: str) -> Iterator[None]:
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


def _to_picture_error(error: Exception, bucket: str) -> PictureError:
    text, kind = str(error), type(error).__name__
    code, status = _find(_CODE, error) or _find(_BOTOCORE_CODE, error), _find(_STATUS, error)
    if code in _NO_BUCKET:
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
