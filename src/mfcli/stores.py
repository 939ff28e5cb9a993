"""Objects in the stores of clouds: s3://BUCKET/KEY, gs://BUCKET/KEY and az://CONTAINER/KEY, read, listed and written.

Keys are taken as they are: nothing in them is percent-encoded. Credentials, regions and endpoints come from where each
cloud's own tools find them. What the clients say may hold credentials, so that no message repeats it.
"""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from mfcli.errors import FailureCode, PictureError
from mfcli.store_clients import (
    NO_BUCKET,
    find_code,
    import_obstore,
    interruptible,
    open_botocore,
    open_bucket,
    translate_errors,
)
from mfcli.store_urls import split_store_url

_CHUNK_BYTES = 2**23
_PAGE = 1000


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
    obstore = import_obstore()
    with translate_errors(bucket):
        if prefix and _is_odd(prefix.removesuffix("/")):
            if not bucket.startswith("s3:"):
                raise _make_key_error()
            yield from _list_odd_keys(bucket, prefix, "", timeout_s)
            return
        last = prefix if start else None  # a listing begins after it; the object of this very name is asked for below
        store = open_bucket(bucket, timeout_s)
        if last is not None:
            with contextlib.suppress(FileNotFoundError):
                yield _describe(obstore.head(store, prefix))
        try:
            pages = obstore.list(store, folder or None, offset=last, chunk_size=_PAGE)
            while page := _take(pages):
                for found in page:
                    if found["path"] == folder:
                        continue  # the object that stands for the folder: its key ended with a slash
                    if not found["path"].startswith(prefix):
                        return
                    last = found["path"]
                    yield _describe(found)
        except obstore.exceptions.InvalidPathError:
            if not bucket.startswith("s3:"):
                raise
            yield from _list_odd_keys(bucket, prefix, last or "", timeout_s)


@interruptible
def _take(pages: Iterator[Any]) -> Any:
    return next(pages, None)


def _list_odd_keys(bucket: str, prefix: str, last: str, timeout_s: float) -> Iterator[StoredObject]:
    """Go on with a listing of S3 in which there are keys that obstore does not know: with empty parts, `.` or `..`."""
    pages = open_botocore(timeout_s).get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket[len("s3://") : -1], Prefix=prefix, StartAfter=last):
        for found in page.get("Contents", ()):
            yield StoredObject(found["Key"], found["Size"], found["ETag"])


def _describe(found: Any) -> StoredObject:
    return StoredObject(found["path"], int(found["size"]), found["e_tag"])


@interruptible
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
    with translate_errors(bucket):
        if is_odd:
            answer = open_botocore(timeout_s).get_object(Bucket=bucket[len("s3://") : -1], Key=key)
            size_bytes, read = answer["ContentLength"], answer["Body"].read
        else:
            found = import_obstore().get(open_bucket(bucket, timeout_s), key)
            size_bytes, read = found.meta["size"], found.bytes
        if size_bytes > max_bytes:
            raise PictureError(FailureCode.TOO_LARGE, f"is over {max_bytes} bytes")
        return io.BytesIO(read())


@interruptible
def identify_object(url: str, timeout_s: float) -> str:
    """Return what tells an object from others, and from other versions of itself; see `read_object`."""
    bucket, key = _split_checked(url)
    with translate_errors(bucket):
        found = import_obstore().head(open_bucket(bucket, timeout_s), key)
        return f"{bucket}{key}\n{found['e_tag']}\n{found['size']}\n{found['last_modified']}"


@interruptible
def download_object(url: str, file: IO[bytes], timeout_s: float) -> None:
    """Write an object of any size into a file; see `read_object`."""
    bucket, key = _split_checked(url)
    with translate_errors(bucket):
        found = import_obstore().get(open_bucket(bucket, timeout_s, is_bulk=True), key)
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
        raise _make_key_error()
    return bucket, key


def _make_key_error() -> PictureError:
    return PictureError(FailureCode.UNSUPPORTED, "its key has an empty part, or one that is . or ..: not read")


def _is_odd(key: str) -> bool:
    """Return whether obstore would change a key, or refuse it."""
    return any(part in ("", ".", "..") for part in key.split("/"))


@interruptible
def has_object(url: str, timeout_s: float) -> bool:
    """Return whether there is an object; see `read_object`."""
    bucket, key = _split_checked(url)
    with translate_errors(bucket):
        try:
            import_obstore().head(open_bucket(bucket, timeout_s), key)
        except FileNotFoundError:
            return False
        return True


@interruptible
def check_writable(url: str, timeout_s: float) -> None:
    """Check that an object may be written, by a request that is never carried out; see `read_object`.

    It is to replace a version that does not exist, of an object beside this one. A store that does not know such
    conditions writes that object, which is then deleted.
    """
    bucket, key = _split_checked(url)
    obstore, beside = import_obstore(), f"{key}.partial"
    with translate_errors(bucket):
        store = open_bucket(bucket, timeout_s)
        try:
            obstore.put(store, beside, b"", mode={"e_tag": '"0"', "version": "1"}, use_multipart=False)
        except (FileNotFoundError, NotImplementedError, obstore.exceptions.PreconditionError) as error:
            if find_code(error) in NO_BUCKET:
                raise
            return
        except obstore.exceptions.GenericError as error:
            if find_code(error) != "NotImplemented":
                raise
            return
        obstore.delete(store, beside)


@interruptible
def write_object(url: str, data: bytes, timeout_s: float) -> None:
    """Write an object, which appears as a whole; see `read_object`."""
    bucket, key = _split_checked(url)
    with translate_errors(bucket):
        import_obstore().put(open_bucket(bucket, timeout_s), key, data, use_multipart=False)


@interruptible
def create_object(url: str, data: bytes, timeout_s: float) -> None:
    """Write an object, unless there is one; see `read_object`."""
    bucket, key = _split_checked(url)
    obstore = import_obstore()
    with translate_errors(bucket), contextlib.suppress(obstore.exceptions.AlreadyExistsError):
        obstore.put(open_bucket(bucket, timeout_s), key, data, mode="create", use_multipart=False)


@interruptible
def delete_object(url: str, timeout_s: float) -> None:
    """Delete an object, if there is one; see `read_object`."""
    bucket, key = _split_checked(url)
    with translate_errors(bucket), contextlib.suppress(FileNotFoundError):
        import_obstore().delete(open_bucket(bucket, timeout_s), key)


@interruptible
def upload_file(path: Path, url: str, timeout_s: float) -> None:
    """Write a file into an object, which appears as a whole; large ones are uploaded in parts; see `read_object`."""
    bucket, key = _split_checked(url)
    with translate_errors(bucket):
        import_obstore().put(open_bucket(bucket, timeout_s, is_bulk=True), key, path, chunk_size=_CHUNK_BYTES)
