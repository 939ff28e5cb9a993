"""The picture formats that are decoded, and the suffixes of their files.

An allow-list: Pillow knows formats that start other programs (EPS), or that open their contents as any other format
(IPTC), and is never asked about a format that is not named here. What decodes them is images.py.
"""

from collections.abc import Iterable

from mfcli.errors import UsageError

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
"""Suffixes by Pillow's name of the format. Those that Pillow loads first come first: asking about any other imports
all of its plugins. HEIF takes the package pillow-heif."""

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
"""Formats that are decoded only where they are asked for; Pillow decodes each of them by itself."""


def suffixes_of(formats: Iterable[str]) -> frozenset[str]:
    """Return the suffixes, in lower case and with their dot, of formats by Pillow's names."""
    known = DEFAULT_FORMATS | OPTIONAL_FORMATS
    return frozenset(suffix for name in formats for suffix in known[name])


DEFAULT_SUFFIXES = suffixes_of(DEFAULT_FORMATS)
ALL_SUFFIXES = suffixes_of([*DEFAULT_FORMATS, *OPTIONAL_FORMATS])


def formats_with(extra: Iterable[str]) -> tuple[str, ...]:
    """Return the default formats and those that are asked for, by Pillow's names.

    Args:
        extra: names of optional formats, in any case.

    Raises:
        UsageError: a name is none of them.
    """
    names = [name.strip().upper() for name in extra]
    for name in names:
        if name not in DEFAULT_FORMATS and name not in OPTIONAL_FORMATS:
            raise UsageError(
                f"unknown picture format {name.lower()!r}", f"one of {', '.join(OPTIONAL_FORMATS).lower()}"
            )
    return tuple(dict.fromkeys([*DEFAULT_FORMATS, *names]))
