"""Synthetic pictures with the decoding cost of photos, for benchmarks and checks that have no photos.

Their spectrum falls off as it does in photos (amplitude about 1/f), so a JPEG of 500x375 pixels has about 50 kB and
takes as long to decode as a photo of that size. They show nothing, so predictions on them are meaningless.
"""

from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 500, 375
"""About the median size of the photos of ImageNet, in pixels."""

_QUALITY = 90
_SCALES = 8
_GRAIN = 5.0


def make_picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Return an RGB picture; the same seed gives the same pixels.

    Args:
        seed: selects the picture.
        width: in pixels.
        height: in pixels.
    """
    random = np.random.default_rng(seed)
    total = np.full((height, width, 3), 120.0, np.float32)
    for scale in range(1, _SCALES):
        cells = (max(2, height >> (_SCALES - scale)), max(2, width >> (_SCALES - scale)))
        noise = Image.fromarray(np.uint8(random.integers(0, 256, (*cells, 3))), "RGB")
        upsampled = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float32) - 127.5
        total += upsampled * (0.55 / scale)
    total += random.normal(0, _GRAIN, (height, width, 1)).astype(np.float32)
    return Image.fromarray(np.uint8(total.clip(0, 255)), "RGB")


def write_jpegs(folder: Path, count: int) -> list[Path]:
    """Write `count` pictures as JPEG files of about 500x375 pixels and 50 kB; return their paths.

    Args:
        folder: an existing folder.
        count: how many; their sizes differ slightly, and every fifth is in portrait format.
    """
    paths = []
    for seed in range(count):
        width, height = WIDTH - seed % 7 * 4, HEIGHT - seed % 3 * 20
        path = folder / f"{seed:05}.jpg"
        size = (height, width) if seed % 5 == 4 else (width, height)
        make_picture(seed, *size).save(path, quality=_QUALITY)
        paths.append(path)
    return paths
