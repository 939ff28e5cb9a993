"""No picture starts a program, under any suffix, in a folder, an archive or on standard input."""

import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from conftest import TRIAL_DATA
from deterministic import picture
from mfcli.inputs.codecs import OPTIONAL_FORMATS

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"

RUN = """
import os, sys

def hook(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn"):
        if "mfcli.inference.decode_worker" in str(arguments):  # our own, in which nothing can be started
            return
        os.write(2, f"started: {event} {arguments!r}\\n".encode())
        os._exit(77)

sys.addaudithook(hook)
from mfcli.cli import main
sys.exit(main(sys.argv[1:]))
"""


def iptc_with(payload: bytes) -> bytes:
    """An IPTC picture of 8x8 grey pixels whose compressed data is `payload`, in any format."""

    def field(dataset: int, data: bytes, record: int = 3) -> bytes:
        return bytes([0x1C, record, dataset]) + struct.pack(">H", len(data)) + data

    head = field(60, bytes([1, 0])) + field(20, b"\0\x08")
    return head + field(30, b"\0\x08") + field(120, b"\0\x05") + field(10, payload, record=8)


@pytest.fixture
def false_gs(tmp_path: Path) -> Path:
    """A folder to put first in PATH; its `gs` leaves the file `started` beside itself."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "gs"
    program.write_text(f"#!/bin/sh\necho gs >> {folder / 'started'}\n")
    program.chmod(0o755)
    return folder


def mf(*arguments: object, path: Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    environ = os.environ | {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        env=environ,
        input=stdin,
        capture_output=True,
        timeout=120,
    )


def test_pillow_alone_starts_ghostscript(false_gs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack works on Pillow alone; otherwise the other tests would prove nothing."""
    import io

    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    monkeypatch.setenv("PATH", f"{false_gs}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(Exception), Image.open(io.BytesIO(iptc_with(POSTSCRIPT))) as opened:  # noqa: B017, PT011
        opened.load()
    assert (false_gs / "started").exists()


@pytest.mark.parametrize("options", [(), ("--formats", ",".join(OPTIONAL_FORMATS))], ids=["default", "all formats"])
def test_no_file_starts_a_program_under_any_suffix(options: tuple[str, ...], false_gs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    payloads = {"ps": POSTSCRIPT, "iptc": iptc_with(POSTSCRIPT), "nested": iptc_with(iptc_with(POSTSCRIPT))}
    if TRIAL_DATA.joinpath("attacks").is_dir():
        payloads |= {path.stem: path.read_bytes() for path in TRIAL_DATA.glob("attacks/*ps*.jpg")}
    Image.init()
    for suffix in {"", *Image.registered_extensions()}:
        for name, data in payloads.items():
            (folder / f"{name}{suffix}").write_bytes(data)
    picture(64, 64).save(folder / "zzz.png")
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    ran = mf(
        "predict", folder, tmp_path / "pictures.zip", "--include", "*", "--format", "jsonl", *options, path=false_gs
    )
    assert (ran.returncode, b"started" in ran.stderr) == (5, False), ran.stderr.decode()
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(rows) == 2 * len(list(folder.iterdir()))
    assert [Path(row["member"] or row["input"]).name for row in rows if row["status"] == "ok"] == ["zzz.png"] * 2
    assert not (false_gs / "started").exists()


@pytest.mark.slow
def test_standard_input_starts_no_program(false_gs: Path) -> None:
    for data in (POSTSCRIPT, iptc_with(POSTSCRIPT)):
        ran = mf("predict", "-", "--format", "jsonl", path=false_gs, stdin=data)
        assert ran.returncode == 6, ran.stderr.decode()
        assert json.loads(ran.stdout)["error"]["code"] == "unsupported"
    assert not (false_gs / "started").exists()
