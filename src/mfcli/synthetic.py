"""Made-up pictures that cost what photos cost: for measurements and checks where there are no photos at hand.

Detail falls off with its scale as it does in photos (amplitude about 1/f), so that a JPEG of 500x375 pixels has some
50 kB and takes as long to decode as a photo of that size. They show nothing; no model's answer to them means anything.
"""

from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 500, 375
"""About the median size of ImageNet's photos, in pixels."""

_QUALITY = 90
_SCALES = 8
_GRAIN = 5.0


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Return an RGB picture; the same seed gives the same pixels.

    Args:
        seed: which picture.
        width: in pixels.
        height: in pixels.
    """
    random = np.random.default_rng(seed)
    total = np.full((height, width, 3), 120.0, np.float32)
    for scale in range(1, _SCALES):
        cells = (max(2, height >> (_SCALES - scale)), max(2, width >> (_SCALES - scale)))
        noise = Image.fromarray(np.uint8(random.integers(0, 256, (*cells, 3))), "RGB")
        grown = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float32) - 127.5
        total += grown * (0.55 / scale)
    total += random.normal(0, _GRAIN, (height, width, 1)).astype(np.float32)
    return Image.fromarray(np.uint8(total.clip(0, 255)), "RGB")


def write_jpegs(folder: Path, count: int) -> list[Path]:
    """Write `count` pictures as JPEG files of about 500x375 pixels and 50 kB; return their paths.

    Args:
        folder: is there and can be written.
        count: how many; sizes differ a little from one to the next, and every fifth is upright.
    """
    paths = []
    for seed in range(count):
        width, height = WIDTH - seed % 7 * 4, HEIGHT - seed % 3 * 20
        path = folder / f"{seed:05}.jpg"
        size = (height, width) if seed % 5 == 4 else (width, height)
        picture(seed, *size).save(path, quality=_QUALITY)
        paths.append(path)
    return paths
