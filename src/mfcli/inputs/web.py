"""Fetches a picture from a URL, with limits on time and size, and without following redirects into private networks.

The user may name any host. A redirect may lead to a private, loopback or link-local address only on that same host, and
no longer once a response came from the public internet; see connections.py.
"""

import contextlib
import http.cookiejar
import io
import re
import threading
from http import HTTPStatus
from urllib.parse import urlsplit

import requests
import urllib3

from mfcli.connections import PrivateAddressError, UnknownHostError, Watch, watch, watch_session
from mfcli.errors import EngineError, FailureCode, ModelError, PictureError
from mfcli.http import (
    Session,
    describe_error,
    describe_malformed_url,
    describe_missing_certificates,
    parse_size,
    redact_url,
    redirect_target,
)
from mfcli.version import __version__

_MAX_REDIRECTS = 5
_CHUNK_BYTES = 2**16
_PAGE = re.compile(rb"\s*(<!doctype html|<html|<head)", re.IGNORECASE)
_HEAD_BYTES = 512
_DESCRIBABLE = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError)
"""Exceptions that can be described without their text, which may contain the URL and its password."""

_thread = threading.local()
"""`sessions`: this thread's sessions, by whether they connect to public addresses only."""


def _get_session(public_only: bool) -> requests.Session:
    """Return this thread's session; fetches from public addresses only have their own session."""
    sessions = _thread.__dict__.setdefault("sessions", {})
    if public_only not in sessions:
        session = sessions[public_only] = Session()
        session.headers.update({"User-Agent": f"mfcli/{__version__}", "Accept": "image/*,*/*;q=0.5"})
        session.headers["Accept-Encoding"] = "identity"
        session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        watch_session(session)
    found: requests.Session = sessions[public_only]
    return found


def open_url(url: str, timeout_s: float, max_bytes: int) -> io.BytesIO:
    """Return the body of the response to a GET request.

    Args:
        url: http or https; user and password in it are used, and never shown.
        timeout_s: for the whole fetch, including redirects.
        max_bytes: the largest body that is read.

    Raises:
        PictureError: network, timeout, too_large, or unsupported for a web page or a malformed URL.
    """
    try:
        with watch(timeout_s) as watching, _follow_redirects(url, watching) as response:
            return _read_body(response, max_bytes)
    except PictureError:
        raise
    except requests.Timeout as error:
        raise PictureError(FailureCode.TIMEOUT, f"no answer within {timeout_s:g} s") from error
    except EngineError as error:
        raise PictureError(FailureCode.NETWORK, "cannot start the thread that enforces the time-out") from error
    except Exception as error:
        raise _to_picture_error(url, error) from error


def _to_picture_error(url: str, error: Exception) -> PictureError:
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and len(chain) < 20:
        chain.append(cause)
    for cause in chain:
        match cause:
            case PrivateAddressError():
                return PictureError(FailureCode.NETWORK, f"redirects to {cause}, a private address; not followed")
            case ModelError():
                return PictureError(FailureCode.NETWORK, cause.message)
            case UnknownHostError():
                return PictureError(FailureCode.NETWORK, f"host {cause} is not known")
    if isinstance(error, requests.exceptions.InvalidHeader):
        return PictureError(FailureCode.NETWORK, "the server's answer is malformed")
    if isinstance(error, ValueError):
        reason = describe_malformed_url(url, error)
        code = FailureCode.NETWORK if "proxy" in reason else FailureCode.UNSUPPORTED
        return PictureError(code, reason)
    if isinstance(error, _DESCRIBABLE):
        return PictureError(FailureCode.NETWORK, describe_error(error))
    if type(error) is OSError:  # not one of requests' own
        return PictureError(FailureCode.NETWORK, describe_missing_certificates(error)[0])
    return PictureError(FailureCode.NETWORK, type(error).__name__)


def _follow_redirects(url: str, watching: Watch) -> requests.Response:
    """Send the request and follow redirects; each is checked, and gets the credentials of its own host only."""
    first_host = urlsplit(url).hostname
    for _ in range(_MAX_REDIRECTS + 1):
        timeout_s = watching.left_s
        response = _get_session(watching.public_only).get(
            url, stream=True, allow_redirects=False, timeout=(timeout_s, timeout_s)
        )
        if not response.is_redirect:
            return response
        response.close()
        is_from_public = watching.is_from_public(url)
        url = redirect_target(url, response)
        watching.public_only = watching.public_only or is_from_public or urlsplit(url).hostname != first_host
        watching.allow(url)
    raise PictureError(FailureCode.NETWORK, f"{redact_url(url)} redirects more than {_MAX_REDIRECTS} times")


def _read_body(response: requests.Response, max_bytes: int) -> io.BytesIO:
    if response.status_code not in (HTTPStatus.OK, HTTPStatus.NON_AUTHORITATIVE_INFORMATION):
        raise PictureError(FailureCode.NETWORK, f"the server answers {_describe_status(response.status_code)}")
    too_large = PictureError(FailureCode.TOO_LARGE, f"the server sends over {max_bytes} bytes")
    if (parse_size(response.headers.get("Content-Length")) or 0) > max_bytes:
        raise too_large
    data = io.BytesIO()
    for chunk in response.iter_content(_CHUNK_BYTES):
        if not data.tell():
            _refuse_web_page(response, chunk[:_HEAD_BYTES])
        data.write(chunk)
        if data.tell() > max_bytes:
            raise too_large
    data.seek(0)
    return data


def _describe_status(code: int) -> str:
    with contextlib.suppress(ValueError):
        return f"{code} {HTTPStatus(code).phrase}"
    return str(code)


def _refuse_web_page(response: requests.Response, head: bytes) -> None:
    """Refuse a web page before the whole body is read; a picture with a wrong Content-Type is accepted."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    says_page = kind in ("text/html", "application/xhtml+xml") and head.lstrip().startswith(b"<")
    if says_page or _PAGE.match(head):
        labelled = "" if says_page or not kind else f" (labelled {kind})"
        raise PictureError(FailureCode.UNSUPPORTED, f"the server sent a web page{labelled}, not a picture")
