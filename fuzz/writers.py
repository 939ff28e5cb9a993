"""Healthy pictures as many writers make them: Pillow, and the programs that are installed.

Debian has those in the packages libjpeg-turbo-progs, webp, libavif-bin, imagemagick, graphicsmagick, ffmpeg, gifsicle,
libvips-tools, libtiff-tools, optipng and pngcrush.
"""

import contextlib
import io
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()

_TIMEOUT_S = 60
_PILLOW: list[tuple[str, tuple[str, ...], list[dict[str, Any]]]] = [
    (
        "JPEG",
        ("RGB", "L", "CMYK"),
        [
            {},
            {"quality": 5},
            {"quality": 100, "subsampling": 0},
            {"progressive": True},
            {"progressive": True, "quality": 30, "subsampling": 1},
            {"optimize": True, "subsampling": 2},
            {"restart_marker_rows": 1},
            {"restart_marker_rows": 3, "progressive": True},
            {"restart_marker_blocks": 1},
            {"restart_marker_blocks": 5, "optimize": True, "subsampling": 0},
            {"restart_marker_blocks": 7, "progressive": True},
        ],
    ),
    ("MPO", ("RGB",), [{}, {"progressive": True}]),
    (
        "WEBP",
        ("RGB", "RGBA", "L"),
        [
            {},
            {"quality": 1, "method": 0},
            {"quality": 30, "method": 6},
            {"quality": 100},
            {"lossless": True},
            {"lossless": True, "quality": 0, "method": 0},
            {"lossless": True, "quality": 100, "method": 6, "exact": True},
            {"alpha_quality": 20},
            {"save_all": True},
        ],
    ),
    (
        "AVIF",
        ("RGB", "RGBA", "L"),
        [
            {"speed": 9},
            {"speed": 10, "quality": 1},
            {"speed": 9, "quality": 100},
            {"speed": 10, "subsampling": "4:4:4"},
            {"speed": 10, "subsampling": "4:0:0"},
            {"speed": 10, "tile_rows": 1, "tile_cols": 1, "autotiling": False},
        ],
    ),
    (
        "PNG",
        ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
        [{}, {"compress_level": 0}, {"compress_level": 9}, {"optimize": True}],
    ),
    ("GIF", ("P", "L", "RGBA"), [{}, {"interlace": 0}, {"optimize": True}, {"save_all": True}]),
    (
        "TIFF",
        ("RGB", "L", "1", "P", "CMYK", "RGBA", "I;16", "F"),
        [
            {"compression": compression}
            for compression in (None, "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "zstd", "lzma")
        ],
    ),
    ("TIFF", ("RGB", "L"), [{"compression": "jpeg", "quality": 80}, {"big_tiff": True}]),
    ("TIFF", ("1",), [{"compression": compression} for compression in ("group3", "group4", "tiff_ccitt")]),
    ("BMP", ("RGB", "L", "P", "1", "RGBA"), [{}]),
    (
        "JPEG2000",
        ("RGB", "L", "RGBA"),
        [
            {},
            {"irreversible": True, "quality_layers": [20]},
            {"tile_size": (64, 64)},
            {"no_jp2": True},
            {"plt": True, "num_resolutions": 2},
        ],
    ),
    ("HEIF", ("RGB", "RGBA"), [{}, {"quality": 10}, {"quality": -1}]),
]
"""Format, modes and options; what does not go together is left out."""
_COMMANDS = [
    *(
        f"cjpeg {options} -outfile out.jpg in.ppm"
        for options in (
            "-arithmetic",
            "-arithmetic -quality 95 -sample 1x1",
            "-arithmetic -progressive",
            "-arithmetic -grayscale",
            "-arithmetic -restart 1",
            "-arithmetic -progressive -restart 3B",
            "-restart 1",
            "-restart 1B",
            "-restart 5B -progressive",
            "-progressive -grayscale",
            "-sample 4x1",
            "-sample 1x2 -restart 2",
            "-rgb",
            "-optimize -quality 3 -baseline",
        )
    ),
    "cjpeg -scans in.scans -restart 2 -outfile out.jpg in.ppm",
    *(
        f"cwebp -quiet {options} in.png -o out.webp"
        for options in (
            "-q 5 -m 0",
            "-q 60 -m 6 -segments 1",
            "-q 100 -sns 0 -f 0",
            "-size 2000",
            "-preset drawing -pass 6",
            "-preset text -sharp_yuv",
            "-lossless -z 0",
            "-lossless -z 9",
            "-near_lossless 20",
            "-lossless -noalpha",
            "-alpha_method 0 -alpha_q 40",
            "-low_memory -mt",
        )
    ),
    *(f"gif2webp -quiet {options} in.gif -o out.webp" for options in ("-lossy", "-mixed", "-m 6")),
    *(
        f"avifenc -s 10 {options} in.png out.avif"
        for options in (
            "-l",
            "-y 400",
            "-y 422",
            "-d 10",
            "-d 12 -y 444",
            "--min 50 --max 63",
            "--tilerowslog2 1 --tilecolslog2 1",
            "-c rav1e",
            "-c svt -y 420",
            "--range limited",
        )
    ),
    *(
        f"ffmpeg -v error -y -i in.png {options}"
        for options in (
            "out.jpg",
            "-q:v 31 -pix_fmt yuvj420p out.jpg",
            "-huffman default -pix_fmt yuvj444p out.jpg",
            "out.png",
            "-pred mixed out.png",
            "-f apng out.png",
            "out.gif",
            "-quality 40 out.webp",
            "-lossless 1 out.webp",
            "-c:v libwebp_anim out.webp",
            "-compression_algo lzw out.tif",
            "-compression_algo deflate out.tif",
            "-compression_algo packbits out.tif",
            "-compression_algo raw out.tif",
            "out.bmp",
            "-c:v libopenjpeg -format jp2 out.jp2",
            "-c:v jpeg2000 out.jp2",
            "-c:v libaom-av1 -cpu-used 8 -still-picture 1 out.avif",
        )
    ),
    *(
        f"/usr/bin/convert in.png {options}"
        for options in (
            "out.jpg",
            "-interlace JPEG -quality 50 out.jpg",
            "-sampling-factor 4:4:4 -quality 100 out.jpg",
            "-colorspace CMYK out.jpg",
            "-interlace PNG out.png",
            "-depth 16 out.png",
            "png8:out.png",
            "png48:out.png",
            "out.gif",
            "-interlace GIF -colors 5 out.gif",
            "-quality 50 out.webp",
            "-define webp:lossless=true out.webp",
            "-define webp:method=0 out.webp",
            "out.avif",
            "out.heic",
            "bmp2:out.bmp",
            "bmp3:out.bmp",
            "-type palette -compress rle out.bmp",
            "out.jp2",
            "-quality 30 out.j2c",
            "-compress lzw out.tif",
            "-compress zip -endian MSB out.tif",
            "-compress jpeg out.tif",
            "-compress rle out.tif",
            "-compress group4 -monochrome out.tif",
            "-compress fax -monochrome out.tif",
            "-compress none -depth 16 out.tif",
            "-define tiff:tile-geometry=64x64 -compress zip out.tif",
            "-define tiff:rows-per-strip=1 -compress lzw out.tif",
        )
    ),
    *(
        f"gm convert in.png {options}"
        for options in ("-interlace line out.jpg", "-quality 10 out.jpg", "-interlace line out.png", "out.webp")
    ),
    *(f"gm convert in.png {options}" for options in ("-compress lzw out.tif", "out.bmp", "out.gif", "out.jp2")),
    *(
        f"vips copy in.png out.{options}"
        for options in (
            "jpg[interlace]",
            "jpg[Q=97,no_subsample]",
            "jpg[optimize_coding,strip]",
            "png[interlace]",
            "png[palette,compression=9]",
            "gif",
            "webp[Q=20,effort=0]",
            "webp[lossless]",
            "webp[near_lossless,Q=40]",
            "webp[smart_subsample,min_size]",
            "avif[effort=0]",
            "avif[lossless,effort=0]",
            "tif[compression=lzw,predictor=horizontal]",
            "tif[compression=deflate,tile]",
            "tif[compression=jpeg,tile,pyramid]",
            "tif[compression=zstd]",
            "tif[bigtiff]",
            "jp2[lossless]",
            "jp2[Q=20]",
        )
    ),
    *(f"gifsicle {options} in.gif -o out.gif" for options in ("-O3", "-i", "--careful", "--lossy=80", "-k 4")),
    "optipng -quiet -i1 in.png -out out.png",
    "pngcrush -s -m 7 in.png out.png",
    *(f"tiffcp {options} in.tif out.tif" for options in ("-c lzw:2", "-c zip", "-c packbits", "-t -w 32 -l 32 -c lzw")),
    *(f"tiffcp {options} in.tif out.tif" for options in ("-B -c jpeg:r:50", "-p separate -c zip", "-8 -c none")),
]
"""Each makes `out.SUFFIX` of one of `in.ppm`, `in.png`, `in.gif` and `in.tif`."""


def draw_images() -> Iterator[Image.Image]:
    """Yield drawings (RGB or RGBA) with what photos seldom have: flat areas, few colours, odd and tiny sizes."""
    yield from (Image.new("RGB", (321, 203), colour) for colour in ("white", "black", (128, 128, 128), (200, 30, 40)))
    text = Image.new("RGB", (640, 480), "white")
    ImageDraw.Draw(text).multiline_text((9, 9), "All of this is on the first lines.\n" * 6, fill="black")
    yield text
    yield text.crop((0, 0, 640, 480)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    steps = np.add.outer(np.arange(300), np.arange(400)).astype(np.uint8)
    gradient = Image.fromarray(steps).convert("RGB")
    yield gradient
    yield gradient.resize((17, 9))
    yield gradient.resize((1, 1))
    half = gradient.copy()
    half.paste("black", (0, 100, 400, 300))
    yield half
    clear = half.convert("RGBA")
    clear.putalpha(Image.fromarray(steps).point(lambda level: 255 * (level > 99)))
    yield clear
    noise = np.random.default_rng(7).integers(0, 256, (96, 128, 3), np.uint8)
    yield Image.fromarray(noise)
    yield Image.new("RGB", (3000, 2000), "white")


def write(image: Image.Image, takes: Callable[[str], bool] = lambda _: True) -> Iterator[tuple[str, bytes]]:
    """Yield writer and bytes of each file that is made of a picture.

    Args:
        image: RGB or RGBA.
        takes: whether a writer is asked, by what this yields for it.
    """
    yield from _write_with_pillow(image, takes)
    yield from _write_with_programs(image, takes)


def _write_with_pillow(image: Image.Image, takes: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    for format, modes, choices in _PILLOW:
        for mode, options in product(modes, choices):
            writer, file = f"Pillow {format} {mode} {options}", io.BytesIO()
            if not takes(writer):
                continue
            frames = {"append_images": [_convert(image.rotate(90), mode)]} if "save_all" in options else {}
            try:
                _convert(image, mode).save(file, format, **options, **frames)
            except (OSError, KeyError, ValueError, RuntimeError, SystemError):  # not in this format, or too small
                continue
            yield writer, file.getvalue()


def _write_with_programs(image: Image.Image, takes: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        _convert(image, "RGB").save(here / "in.ppm")
        image.save(here / "in.png")
        _convert(image, "RGB").save(here / "in.tif")
        _convert(image, "RGB").quantize(64).save(here / "in.gif")
        (here / "in.scans").write_text("0;\n1;\n2;\n")
        for command in _COMMANDS:
            program, *arguments = command.split()
            if not shutil.which(program) or not takes(command):
                continue
            for made in here.glob("out*"):
                made.unlink()
            with contextlib.suppress(subprocess.SubprocessError):  # not for this picture
                subprocess.run([program, *arguments], cwd=folder, capture_output=True, timeout=_TIMEOUT_S, check=True)
                yield from ((command, made.read_bytes()) for made in here.glob("out*"))


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    return image.convert("RGB").convert(mode) if mode in ("P", "CMYK") else image.convert(mode)
