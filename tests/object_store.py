"""A store that speaks S3 on loopback: moto's server, with faults that a test can ask for."""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mfcli import store_clients

Answer = tuple[str, bytes] | int | None
"""What is sent in place of the store's answer: a status and a body, or so many first bytes of the store's own body;
None for the store's own answer."""

SECRET = "s3cr3t/Access+Key"
SLOW_DOWN = ("503 Slow Down", b"<Error><Code>SlowDown</Code></Error>")
SERVER_ERROR = ("500 Internal Server Error", b"<Error><Code>InternalError</Code></Error>")
EXPIRED = ("400 Bad Request", b"<Error><Code>ExpiredToken</Code><Message>a secret</Message></Error>")
DENIED = ("403 Forbidden", b"<Error><Code>AccessDenied</Code><AWSAccessKeyId>AKIAKEY</AWSAccessKeyId></Error>")
OTHER_REGION = (
    "400 Bad Request",
    b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>",
)


@dataclass
class ObjectStore:
    """A running store.

    Attributes:
        url: of the server.
        fault: from the path of a request to what it gets.
        requests: method and path of each, as they came.
        most_at_once: requests that were under way at the same time, at most.
    """

    url: str = ""
    fault: Callable[[str], Answer] = lambda _: None
    requests: list[tuple[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    _app: Any = None
    _running: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, url: str, data: bytes) -> None:
        """Store an object; its bucket is created."""
        from moto.s3.models import s3_backends

        backend = s3_backends["123456789012"]["aws"]
        bucket, _, key = url.removeprefix("s3://").partition("/")
        if bucket not in backend.buckets:
            backend.create_bucket(bucket, "us-east-1")
        backend.put_object(bucket, key, data)

    def get(self, url: str) -> bytes:
        """Return the bytes of an object."""
        from moto.s3.models import s3_backends

        bucket, _, key = url.removeprefix("s3://").partition("/")
        return bytes(s3_backends["123456789012"]["aws"].get_object(bucket, key).value)

    def list(self, bucket: str) -> "list[str]":
        """Return the keys in a bucket."""
        from moto.s3.models import s3_backends

        return sorted(s3_backends["123456789012"]["aws"].buckets[bucket].keys)

    def fail_first(self, count: int, answer: Answer, *, match: str = "") -> None:
        """Give this answer to the first requests for each path that matches."""
        seen: Counter[str] = Counter()

        def fault(path: str) -> Answer:
            with self._lock:
                seen[path] += 1
                return answer if seen[path] <= count and re.search(match, path) else None

        self.fault = fault

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request; a WSGI application."""
        method = environ["REQUEST_METHOD"]
        path = environ.get("RAW_URI") or environ["PATH_INFO"]
        with self._lock:
            self.requests.append((method, path))
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
        try:
            answer = self.fault(path)
            if isinstance(answer, tuple):
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response(
                    answer[0], [("Content-Type", "application/xml"), ("Content-Length", str(len(answer[1])))]
                )
                return [answer[1]]
            body = b"".join(self._app(environ, start_response))
            return [body if answer is None else body[:answer]]
        finally:
            with self._lock:
                self._running -= 1


@pytest.fixture(scope="session")
def store_server() -> Iterator[ObjectStore]:
    """Run a store."""
    from moto.moto_server.werkzeug_app import create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):  # type: ignore[misc]  # untyped
        def log(self, *arguments: object) -> None:
            pass

    store = ObjectStore(_app=create_backend_app("s3"))
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    store.url = f"http://127.0.0.1:{server.server_port}"
    yield store
    server.shutdown()


@pytest.fixture
def store(store_server: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ObjectStore:
    """Return an empty store, which the environment names; there is no configuration of AWS."""
    from moto.backends import get_backend

    get_backend("s3").reset()
    monkeypatch.setenv("AWS_ENDPOINT_URL", store_server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    store_clients._make_client.cache_clear()
    store_clients._find_aws_config.cache_clear()
    store_clients._get_session.cache_clear()
    store_clients._make_botocore.cache_clear()
    store_server.fault, store_server.most_at_once = lambda _: None, 0
    store_server.requests.clear()
    return store_server
