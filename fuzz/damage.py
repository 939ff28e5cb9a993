"""What becomes of healthy and of damaged pictures: python fuzz/damage.py healthy|damaged PHOTOS [--files N].

`healthy` decodes files by many writers, of photos and drawings, and lists those that are refused. `damaged` cuts files
of photos, in formats that are compressed, and either closes them, so that their headers and ends are as in a whole
file, or fills them up with zeros; it lists those with an answer whose first class is not the photo's own. The model is
the bundled one.
"""

import argparse
import io
import random
import struct
import sys
import zlib
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Literal

from PIL import Image

from mfcli.errors import PictureError
from mfcli.inference.model_loading import load_predictor
from mfcli.inputs.decode import decode
from writers import draw_images, write

_LARGEST_SIDE = 640
_SHARE = 0.2
"""How many of the writers make a healthy file of a picture, so that there are many pictures."""
DAMAGED = [
    "Pillow JPEG RGB {}",
    "Pillow JPEG RGB {'quality': 100, 'subsampling': 0}",
    "Pillow JPEG RGB {'progressive': True}",
    "Pillow JPEG RGB {'restart_marker_rows': 1}",
    "Pillow JPEG RGB {'restart_marker_blocks': 1}",
    "Pillow JPEG RGB {'restart_marker_blocks': 7, 'progressive': True}",
    "cjpeg -arithmetic -outfile out.jpg in.ppm",
    "cjpeg -arithmetic -progressive -outfile out.jpg in.ppm",
    "cjpeg -arithmetic -restart 1 -outfile out.jpg in.ppm",
    "Pillow WEBP RGB {}",
    "Pillow WEBP RGB {'lossless': True}",
    "Pillow AVIF RGB {'speed': 9}",
    "avifenc -s 10 -l in.png out.avif",
    "Pillow PNG RGB {}",
    "Pillow TIFF RGB {'compression': 'tiff_lzw'}",
    "Pillow TIFF RGB {'compression': 'tiff_adobe_deflate'}",
    "Pillow TIFF RGB {'compression': 'jpeg', 'quality': 80}",
    "Pillow GIF P {}",
    "gifsicle -i in.gif -o out.gif",
    "Pillow JPEG2000 RGB {}",
    "Pillow HEIF RGB {}",
]
"""Writers whose files are damaged."""


def close(data: bytes, cut: int) -> bytes:
    """Return the first bytes of a picture with the headers and the end of a whole one."""
    kept = data[:cut]
    match data[:4]:
        case b"\xff\xd8\xff\xe0":
            return kept + b"\xff\xd9"
        case b"GIF8":
            return kept + b"\0;"
        case b"\x89PNG":
            begin = data.rfind(b"IDAT", 0, cut)
            chunk = kept[begin:]
            return data[: begin - 4] + _number(len(chunk) - 4) + chunk + _number(zlib.crc32(chunk)) + data[-12:]
        case b"RIFF":
            kept += bytes(len(kept) % 2)
            return (
                data[:4] + _number(len(kept) - 8, "little") + data[8:16] + _number(len(kept) - 20, "little") + kept[20:]
            )
        case b"II*\0":
            return _close_tiff(data, cut)
        case b"\0\0\0\x0c":  # JPEG 2000
            return kept + b"\xff\xd9"
    begin = data.index(b"mdat")  # AVIF and HEIF: a box at the end; another says how long the data in it is
    length = len(data) - begin - 4
    headers = data[: begin - 4].replace(_number(length), _number(length - len(data) + cut))
    return headers + _number(cut - begin + 4) + kept[begin:]


def fill(data: bytes, cut: int) -> bytes:
    """Return the first bytes of a picture with zeros in place of the rest, but for the directory of a TIFF."""
    end = int.from_bytes(data[4:8], "little") if data[:4] == b"II*\0" else len(data)
    return data[:cut] + bytes(max(end - cut, 0)) + data[max(end, cut) :]


def _number(value: int, order: Literal["big", "little"] = "big") -> bytes:
    return value.to_bytes(4, order)


def _close_tiff(data: bytes, cut: int) -> bytes:
    """Let the strips of a TIFF be as long as is left of them."""
    closed = bytearray(data)
    with Image.open(io.BytesIO(data)) as picture:
        offsets, counts = (picture.tag_v2[tag] for tag in (273, 279))  # type: ignore[attr-defined]
    left = [max(0, min(count, cut - offset)) for offset, count in zip(offsets, counts, strict=True)]
    old, new = (struct.pack(f"<{len(values)}I", *values) for values in (counts, left))
    at = data.rfind(old)
    closed[at : at + len(old)] = new
    return bytes(closed)


def list_photos(folder: Path, count: int) -> list[Path]:
    """Return some JPEGs of a folder, the same at each call."""
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    return random.Random(7).sample(photos, min(count, len(photos)))


def read_photo(path: Path) -> Image.Image:
    """Return a photo, RGB, of at most 640 pixels."""
    with Image.open(path) as photo:
        photo.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
        return photo.convert("RGB")


def judge_healthy(photos: list[Path], count: int) -> int:
    """Decode so many files by all writers, list those that are refused, and return how many."""
    chance, writers, refused = random.Random(7), Counter[str](), 0
    for image in chain(draw_images(), map(read_photo, photos)):
        for writer, data in write(image, lambda _: chance.random() < _SHARE):
            writers[writer] += 1
            try:
                decode(io.BytesIO(data))
            except PictureError as error:
                refused += 1
                print(f"{image.width}x{image.height} {writer}: {error.message}")
        if writers.total() >= count:
            break
    print(f"{writers.total()} healthy files of {len(writers)} writers: {refused} refused")
    return refused


def judge_damaged(photos: list[Path], count: int) -> int:
    """Classify so many damaged files, list those with another first class, and return how many."""
    predictor, chance = load_predictor(top_k=1, isolate=False), random.Random(7)
    judged, answered, wrong = Counter[str](), Counter[str](), Counter[str]()
    for image in map(read_photo, photos):
        for writer, data in write(image, DAMAGED.__contains__):
            cuts = [int(len(data) * chance.uniform(0.05, 0.95)) for _ in range(2)]
            whole, *found = predictor.predict([data, close(data, cuts[0]), fill(data, cuts[1])])
            for damage, cut, result in zip(("closed", "filled up with zeros"), cuts, found, strict=True):
                kind = f"{writer}, {damage}"
                judged[kind] += 1
                answered[kind] += result.status == "ok"
                if result.status == "ok" and result.predictions[0].label != whole.predictions[0].label:
                    wrong[kind] += 1
                    print(f"{kind} after {cut / len(data):.0%} of {len(data)} bytes: another first class")
        if judged.total() >= count:
            break
    for kind, number in judged.items():
        print(f"{kind}: {number} files, {answered[kind]} answered, {wrong[kind]} with another first class")
    print(f"{judged.total()} damaged files: {wrong.total()} with another first class")
    return wrong.total()


def main() -> int:
    """Judge what becomes of either kind; exit code 1 if a healthy file is refused, or more than 1 % are wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0] if __doc__ else None)
    parser.add_argument("kind", choices=("healthy", "damaged"))
    parser.add_argument("photos", type=Path, help="a folder of JPEGs")
    parser.add_argument("--files", type=int, help="2000 healthy or 600 damaged ones")
    arguments = parser.parse_args()
    if arguments.kind == "healthy":
        count = arguments.files or 2000
        return judge_healthy(list_photos(arguments.photos, count), count) > 0
    count = arguments.files or 600
    return judge_damaged(list_photos(arguments.photos, count), count) > count / 100


if __name__ == "__main__":
    sys.exit(main())
