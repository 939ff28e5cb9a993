"""Generated pictures of a few classes that a model can tell apart: their colour is the class."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 60, 50), "green": (60, 170, 70), "blue": (50, 80, 200)}


def write_picture(path: Path, colour: str, seed: int) -> Path:
    """Write a picture of a class; other seeds give other pictures."""
    random = np.random.default_rng([seed, *COLOURS[colour]])
    coarse = random.integers(-70, 70, (6, 6, 1)).repeat(12, 0).repeat(12, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.array(COLOURS[colour]) + coarse + random.integers(-25, 25, (72, 72, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def write_classes(folder: Path, count: int, first: int = 0) -> Path:
    """Write `count` pictures of each class into a folder of folders; return it."""
    for colour in COLOURS:
        for seed in range(first, first + count):
            write_picture(folder / colour / f"{seed}.png", colour, seed)
    return folder
