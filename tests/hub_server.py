"""A server on loopback that behaves like the Hugging Face hub, and fails on request.

One port answers `/.../resolve/...` with a redirect that carries X-Linked-Etag (the file's SHA-256), X-Linked-Size and
X-Repo-Commit; the signed address in it, on a second port, serves the bytes, ranges included. What fails, and how
often, is set in `Behaviour`. Run as a program it serves one file until it is killed.
"""

import hashlib
import json
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Behaviour:
    """What fails. Counts are decremented as they are used."""

    cut_after: int | None = None
    cuts: int = 0
    stalls: int = 0
    ignore_range: bool = False
    ignore_if_range: bool = False
    expired: int = 0
    busy: int = 0
    busy_status: int = 429
    retry_after: str | None = "0"
    linked: bool = True
    etag: bool = True
    digest: str | None = None
    size: int | None = None
    endless: bool = False
    redirect: bool = True
    head: bool = True
    redirect_scheme: str = "http"
    location: str | None = None
    bytes_per_s: int | None = None
    raw: tuple[bytes, ...] = ()

    def __str__(self) -> str:
        unusual = {name: value for name, value in vars(self).items() if value != getattr(Behaviour, name)}
        return ",".join(f"{name}={value}" for name, value in unusual.items())


@dataclass
class Hub:
    """Two servers, their files by path, and a log of requests and of bytes sent."""

    files: dict[str, bytes] = field(default_factory=dict)
    behaviour: Behaviour = field(default_factory=Behaviour)
    log: list[tuple[str, str, int]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    sent: int = 0
    tokens: int = 0

    def __enter__(self) -> "Hub":
        self.resolver, self.cdn = (ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, role)) for role in (0, 1))
        for server in (self.resolver, self.cdn):
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self.resolver, self.cdn):
            server.shutdown()
            server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.resolver.server_port}"

    @property
    def gets(self) -> list[tuple[str, str, int]]:
        """The successful GET requests."""
        return [entry for entry in self.log if entry[0] == "GET" and entry[2] in (200, 206)]


def _handler(hub: Hub, role: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def reply(self, status: int, headers: dict[str, str | None]) -> None:
            hub.log.append((self.command, urlsplit(self.path).path, status))
            hub.headers.append(dict(self.headers))
            self.send_response(status)
            for name, value in headers.items():
                if value is not None:
                    self.send_header(name, value)
            if status >= 300:
                self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self) -> None:
            behaviour = hub.behaviour
            path = urlsplit(self.path).path
            if behaviour.raw:
                return self.send_raw(*behaviour.raw)
            if self.command == "HEAD" and not behaviour.head:
                return self.reply(405, {})
            if behaviour.busy > 0:
                behaviour.busy -= 1
                return self.reply(behaviour.busy_status, {"Retry-After": behaviour.retry_after})
            if path not in hub.files:
                return self.reply(404, {})
            if role == 0 and behaviour.redirect:
                return self.resolve(path)
            if role == 1 and parse_qs(urlsplit(self.path).query).get("token") != [str(hub.tokens)]:
                return self.reply(403, {})
            if role == 1 and behaviour.expired > 0:
                behaviour.expired -= 1
                return self.reply(403, {})
            return self.send_file(hub.files[path])

        def send_raw(self, start: bytes, again: bytes = b"") -> None:
            """Send bytes as they are, the second ones again and again for ten seconds."""
            hub.log.append((self.command, self.path, 0))
            self.close_connection = True
            ends = time.monotonic() + 10
            try:
                self.wfile.write(start)
                while again and time.monotonic() < ends:
                    self.wfile.write(again)
                    time.sleep(0.01)
            except OSError:
                pass

        def resolve(self, path: str) -> None:
            hub.tokens += 1
            digest = hub.behaviour.digest or hashlib.sha256(hub.files[path]).hexdigest()
            size = hub.behaviour.size if hub.behaviour.size is not None else len(hub.files[path])
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(size), "X-Repo-Commit": "c0ffee"}
            location = f"{hub.behaviour.redirect_scheme}://127.0.0.1:{hub.cdn.server_port}{path}?token={hub.tokens}"
            location = hub.behaviour.location or location
            self.reply(302, {"Location": location, **(linked if hub.behaviour.linked else {})})

        def send_file(self, data: bytes) -> None:
            behaviour = hub.behaviour
            etag = f'"{hashlib.md5(data).hexdigest()}"' if behaviour.etag else None
            start, wanted = 0, self.headers.get("Range")
            if_range = self.headers.get("If-Range")
            if wanted and not behaviour.ignore_range and (behaviour.ignore_if_range or if_range in (None, etag)):
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                if start >= len(data):
                    return self.reply(416, {"Content-Range": f"bytes */{len(data)}"})
            headers = {"ETag": etag, "Accept-Ranges": "bytes"}
            if behaviour.endless:
                headers["Connection"] = "close"
            else:
                headers["Content-Length"] = str(len(data) - start)
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.reply(206 if start else 200, headers)
            if self.command == "GET":
                self.send_body(data[start:])
            return None

        def send_body(self, body: bytes) -> None:
            behaviour = hub.behaviour
            self.close_connection = behaviour.endless
            if behaviour.cuts > 0:
                behaviour.cuts -= 1
                body, self.close_connection = body[: behaviour.cut_after], True
            try:
                for offset in range(0, len(body), 1 << 16):
                    chunk = body[offset : offset + (1 << 16)]
                    if behaviour.stalls > 0:
                        behaviour.stalls -= 1
                        time.sleep(2)
                    self.wfile.write(chunk)
                    hub.sent += len(chunk)
                    if behaviour.bytes_per_s:
                        time.sleep(len(chunk) / behaviour.bytes_per_s)
                while behaviour.endless:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                self.close_connection = True

    return Handler


if __name__ == "__main__":
    file, path, rate = sys.argv[1:4]
    with Hub({path: Path(file).read_bytes()}, Behaviour(bytes_per_s=int(rate) or None)) as served:
        print(served.endpoint, flush=True)
        try:
            while True:
                time.sleep(0.2)
                print(json.dumps({"sent": served.sent, "gets": len(served.gets)}), flush=True)
        except (KeyboardInterrupt, BrokenPipeError):
            pass
