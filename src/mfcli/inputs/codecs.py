"""The picture formats that are decoded, and the suffixes of their files.

An allow-list: some of Pillow's plugins start other programs (EPS) or open their contents in any other format (IPTC),
so Pillow is only ever asked about the formats that are named here. They are decoded in decode.py.
"""

from collections.abc import Iterable
from enum import StrEnum

from mfcli.errors import UsageError


class DecodeMode(StrEnum):
    """How many of a picture's pixels are decoded: all, or what resizing needs where its decoder can scale down."""

    EXACT = "exact"
    SCALED = "scaled"


DEFAULT_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "HEIF": (".heic", ".heics", ".heif", ".heifs", ".hif"),
}
"""Suffixes by Pillow's name of the format. Those that Pillow preloads come first: asking for any other imports all of
its plugins. HEIF needs the package pillow-heif."""

OPTIONAL_FORMATS = {
    "DDS": (".dds",),
    "ICNS": (".icns",),
    "ICO": (".ico",),
    "PCX": (".pcx",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}
"""Formats that are decoded only on request; Pillow decodes each of them without other programs."""


def suffixes_of(formats: Iterable[str]) -> frozenset[str]:
    """Return the suffixes, in lower case and with their dot, of formats by Pillow's names."""
    known = DEFAULT_FORMATS | OPTIONAL_FORMATS
    return frozenset(suffix for name in formats for suffix in known[name])


DEFAULT_SUFFIXES = suffixes_of(DEFAULT_FORMATS)
ALL_SUFFIXES = suffixes_of([*DEFAULT_FORMATS, *OPTIONAL_FORMATS])


def formats_with(extra: Iterable[str]) -> tuple[str, ...]:
    """Return the default formats and the requested ones, by Pillow's names.

    Args:
        extra: names of optional formats, in any case.

    Raises:
        TypeError: the names are a single string.
        UsageError: a name is not one of them.
    """
    if isinstance(extra, str):
        raise TypeError(f"formats is a str instead of a list of names, such as [{extra!r}]")
    names = [name.strip().upper() for name in extra]
    for name in names:
        if name not in DEFAULT_FORMATS and name not in OPTIONAL_FORMATS:
            raise UsageError(
                f"unknown picture format {name.lower()!r}", f"one of {', '.join(OPTIONAL_FORMATS).lower()}"
            )
    return tuple(dict.fromkeys([*DEFAULT_FORMATS, *names]))
