"""Pillow, kept within limits: its formats, its globals and its errors."""

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from mfcli.errors import FailureCode, PictureError, one_line
from mfcli.files import GIT_LFS_START
from mfcli.inputs.codecs import OPTIONAL_FORMATS
from mfcli.inputs.truncation import is_truncated

_PREFIX_BYTES = 16
_PNG_SIGNATURE = b"\x89PNG"
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
"""What follows `ftyp` in a HEIF file; AVIF has brands of its own, or mif1 with an AVIF brand after it."""
_OTHER_KINDS = (
    (rb"%PDF-", "a PDF document, not a picture"),
    (rb"\s*(?i:<!doctype html|<html)", "a web page, not a picture"),
    (rb"\s*<(?:svg|\?xml)", "SVG or other XML, not pixels"),
    (rb"....ftyp(?:iso|mp4|avc1|qt  |M4V |3g[2p]|MSNV|dash)|\x1aE\xdf\xa3|RIFF....AVI ", "a video, not a picture"),
)
"""How files begin that are often taken for pictures, and what they are."""
_SAYS_TRUNCATED = ("truncated", "unexpected end", "not enough image data")
"""What the messages of decoders contain if a file lacks its end."""
_MAX_PNG_TEXT = 2**26
_globals_lock = threading.Lock()
_caps: list[int] = []
_cap: int | None = None
_ghostscript: str | bool | None = None


def open_picture(file: BinaryIO, formats: Sequence[str]) -> Image.Image:
    """Open a picture, within `guard_globals` and `translate_errors`.

    Args:
        file: binary and seekable, at its start.
        formats: the formats to try, by Pillow's names. HEIF's decoder is in a package of its own, imported when a file
            needs it.
    """
    if "HEIF" in formats and "HEIF" not in Image.OPEN and _is_heif(file.read(_PREFIX_BYTES)):
        with contextlib.suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
    return Image.open(file, formats=[name for name in formats if name != "HEIF" or name in Image.OPEN])


@contextlib.contextmanager
def guard_globals(max_pixels: int) -> Iterator[None]:
    """While any thread decodes, replace Pillow's limit of pixels by ours and disable its use of Ghostscript.

    Both are globals of the whole program. The limit is needed where a decoder finds a larger size than the header's;
    Pillow raises from twice its value on. Without Ghostscript no decoder can start a program, whatever a file makes
    Pillow open.
    """
    global _cap, _ghostscript
    from PIL import EpsImagePlugin  # takes half a millisecond

    _allow_long_texts()
    with _globals_lock:
        if not _caps:
            _cap, _ghostscript = Image.MAX_IMAGE_PIXELS, EpsImagePlugin.gs_binary
        _caps.append(max_pixels)
        Image.MAX_IMAGE_PIXELS, EpsImagePlugin.gs_binary = max(_caps), False
    try:
        yield
    finally:
        with _globals_lock:
            _caps.remove(max_pixels)
            Image.MAX_IMAGE_PIXELS = max(_caps) if _caps else _cap
            if not _caps:
                EpsImagePlugin.gs_binary = _ghostscript


def _allow_long_texts() -> None:
    """Let Pillow read long texts and colour profiles of a PNG; it still limits all texts of a file together."""
    from PIL import PngImagePlugin  # opening a picture imports it anyway

    PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, _MAX_PNG_TEXT)


@contextlib.contextmanager
def translate_errors(file: BinaryIO | None, max_pixels: int) -> Iterator[None]:
    """Turn whatever a decoder raises into a PictureError; plugins raise almost anything on hostile bytes."""
    try:
        yield
    except (PictureError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        pixels = f"{found[0]} pixels are" if found else "is"
        raise PictureError(FailureCode.TOO_LARGE, f"{pixels} over max_pixels={max_pixels}") from error
    except Exception as error:
        if file is not None and is_truncated(file):
            code, message = FailureCode.TRUNCATED, "is truncated: it is shorter than its headers say"
        elif file is not None and isinstance(error, UnidentifiedImageError):
            code, message = _explain_unidentified(file)
        else:
            code, message = _explain_decoder_error(error)
        raise PictureError(code, message) from error


def _explain_decoder_error(error: Exception) -> tuple[FailureCode, str]:
    said = one_line(error)
    if isinstance(error, EOFError) or any(words in said.lower() for words in _SAYS_TRUNCATED):
        return FailureCode.TRUNCATED, f"is truncated: {said}"
    return FailureCode.DECODE, f"cannot be decoded: {said}"


def _explain_unidentified(file: BinaryIO) -> tuple[FailureCode, str]:
    file.seek(0)
    prefix = file.read(_PREFIX_BYTES)
    if prefix.startswith(_PNG_SIGNATURE):  # Pillow does not recognise some damaged ones
        return FailureCode.DECODE, "cannot be decoded: it is damaged after its first bytes"
    if _is_heif(prefix):
        return FailureCode.UNSUPPORTED, "is HEIF, which needs pillow-heif: pip install 'metaformer-cli[heif]'"
    if prefix == GIT_LFS_START:
        return FailureCode.UNSUPPORTED, "is a pointer of Git LFS, not the picture itself: git lfs pull"
    for name in OPTIONAL_FORMATS:
        accept = Image.OPEN[name][1] if name in Image.OPEN else None  # checks the first bytes only
        if accept is not None and accept(prefix):
            return FailureCode.UNSUPPORTED, f"is {name}, which is decoded only on request: formats={name.lower()}"
    for beginning, kind in _OTHER_KINDS:
        if re.match(beginning, prefix, re.DOTALL):
            return FailureCode.UNSUPPORTED, f"is {kind}"
    return FailureCode.UNSUPPORTED, "is not a picture in a format that is decoded here"


def _is_heif(prefix: bytes) -> bool:
    return prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF_BRANDS
