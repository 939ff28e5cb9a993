"""Data sets of the Hugging Face hub, from a server on loopback."""

import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from mfcli import http
from mfcli.errors import PictureError
from mfcli.inputs.selection import Selection
from mfcli.inputs.sources import Source, iter_sources

FILES = {"data/1.jpg": b"one", "data/a#b c.jpg": b"two", "data/x/3.jpg": b"three", "README.md": b"", "raw": b"four"}
ROOT = "hf://datasets/owner/name"
PAGE = 2


class Hub(ThreadingHTTPServer):
    """Serves the files of one data set; its files are on the host `localhost`, to which it redirects."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.log: list[tuple[str, str | None]] = []
        self.busy = self.cut = 0
        self.revision, self.token = "main", ""


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub, parts = self.server, urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        hub.log.append((self.path, self.headers["Authorization"]))
        if hub.busy:
            hub.busy -= 1
            self.answer(429)
        elif path.startswith("/cdn/"):
            self.send(hub.files[path.removeprefix("/cdn/")])
        elif hub.token and self.headers["Authorization"] != f"Bearer {hub.token}":
            self.answer(401)
        elif found := re.fullmatch(rf"/datasets/owner/name/resolve/{hub.revision}/(.*)", path):
            if found[1] in hub.files:
                target = f"http://localhost:{hub.server_port}/cdn/{parts.path.rpartition(f'/{hub.revision}/')[2]}"
                self.answer(302, headers={"Location": target})
            else:
                self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
        elif found := re.fullmatch(rf"/api/datasets/owner/name/tree/{hub.revision}/?(.*)", path):
            self.list(found[1], int(query.get("cursor", ["0"])[0]))
        else:
            self.answer(404, headers={"X-Error-Code": "RepoNotFound"})

    def list(self, folder: str, cursor: int) -> None:
        names = [name for name in sorted(self.server.files) if not folder or name.startswith(f"{folder}/")]
        if not names:
            self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        entries = [{"type": "directory", "path": "data"}] + [
            {"type": "file", "path": name, "size": len(self.server.files[name])} for name in names
        ]
        link = f'<{self.server.url}{self.path.partition("&")[0]}&cursor={cursor + PAGE}>; rel="next"'
        page = json.dumps(entries[cursor : cursor + PAGE]).encode()
        self.answer(200, page, headers={"Link": link} if entries[cursor + PAGE :] else {})

    def send(self, data: bytes) -> None:
        start = int(re.sub(r"\D", "", self.headers.get("Range", "0")))
        cut = self.server.cut
        self.server.cut = 0
        self.answer(206 if start else 200, data[start:], cut)

    def answer(self, status: int, body: bytes = b"", cut: int = 0, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut] if cut else body)
        self.close_connection = bool(cut)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(http, "BACKOFF_S", 0.01)
        yield server
        server.shutdown()


def read(*arguments: str, selection: Selection = Selection()) -> dict[str, bytes | str]:  # noqa: B008 - frozen
    return {source.shown_name: open_source(source) for source in iter_sources(arguments, selection=selection)}


def open_source(source: Source) -> bytes | str:
    try:
        return source.open().read()
    except PictureError as error:
        return f"{error.code}: {error.message}"


@pytest.mark.parametrize(
    ("argument", "names"),
    [
        (f"{ROOT}/data/1.jpg", ["data/1.jpg"]),
        (f"{ROOT}/data/a#b c.jpg", ["data/a#b c.jpg"]),
        (ROOT, ["data/1.jpg", "data/a#b c.jpg", "data/x/3.jpg"]),
        (f"{ROOT}/", ["data/1.jpg", "data/a#b c.jpg", "data/x/3.jpg"]),
        (f"{ROOT}/data/x/", ["data/x/3.jpg"]),
        (f"{ROOT}/data/x", ["data/x/3.jpg"]),
        (f"{ROOT}/raw", ["raw"]),
        (f"{ROOT}/data/*.jpg", ["data/1.jpg", "data/a#b c.jpg"]),
        (f"{ROOT}/**/3.jpg", ["data/x/3.jpg"]),
    ],
)
def test_files_folders_and_globs(hub: Hub, argument: str, names: list[str]) -> None:
    assert read(argument) == {f"{ROOT}/{name}": hub.files[name] for name in names}


def test_revisions(hub: Hub) -> None:
    hub.revision = "v1.0"
    assert read(f"{ROOT}@v1.0/data/x/") == {f"{ROOT}@v1.0/data/x/3.jpg": b"three"}


def test_archives(hub: Hub) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("in/1.jpg", bytes(10**5))
    hub.files["a.zip"] = packed.getvalue()
    hub.cut = 50_000
    assert read(f"{ROOT}/a.zip") == {f"{ROOT}/a.zip/in/1.jpg": bytes(10**5)}
    assert [path for path, _ in hub.log if "/cdn/" in path] == ["/cdn/a.zip"] * 2


@pytest.mark.parametrize("from_file", [True, False])
def test_the_token_is_sent_to_the_hub_alone(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, from_file: bool
) -> None:
    hub.token = "hf_s3cret"
    denied = "permission: the hub denies access, or has no such data set, and no token was found"
    assert read(f"{ROOT}/raw", f"{ROOT}/data/*.jpg") == {f"{ROOT}/raw": denied, f"{ROOT}/data/*.jpg": denied}
    if from_file:
        (tmp_path / "token").write_text("hf_s3cret\n")
    else:
        monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    hub.log.clear()
    assert read(f"{ROOT}/data/1.jpg") == {f"{ROOT}/data/1.jpg": b"one"}
    assert [token for _, token in hub.log] == ["Bearer hf_s3cret", None]


def test_a_busy_hub_is_asked_again(hub: Hub) -> None:
    hub.busy = 3
    assert read(f"{ROOT}/raw") == {f"{ROOT}/raw": b"four"}
    hub.busy = 3
    assert len(read(f"{ROOT}/")) == 3


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"{ROOT}/gone.jpg", "not_found: no such file in the data set"),
        ("hf://datasets/no/body/a.jpg", "not_found: the hub has no such data set or revision"),
        ("hf://models/owner/a.jpg", "unsupported: is not hf://datasets/OWNER/NAME/PATH"),
        ("hf://datasets/a.jpg", "unsupported: is not hf://datasets/OWNER/NAME/PATH"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_is_not_there(url: str, message: str) -> None:
    assert list(read(url).values()) == [message]


@pytest.mark.parametrize("body", [b"<html>Log in</html>", b'{"error": "?"}', b'[{"type": "file"}]', b"[1]", b"\xff"])
@pytest.mark.usefixtures("hub")
def test_a_listing_that_is_none(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    monkeypatch.setattr(Handler, "list", lambda handler, *_: handler.answer(200, body))
    assert read(f"{ROOT}/") == {f"{ROOT}/": "network: the hub answers with no list of files"}


def test_limits(hub: Hub) -> None:
    assert read(f"{ROOT}/raw", selection=Selection(max_bytes=3)) == {f"{ROOT}/raw": "too_large: is over 3 bytes"}
    hub.log.clear()
    assert str(read(f"{ROOT}/raw", selection=Selection(offline=True))).count("not fetched while offline") == 1
    assert not hub.log
