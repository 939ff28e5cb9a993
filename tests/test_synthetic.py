"""Synthetic pictures: deterministic, and as large as photos."""

import statistics
from pathlib import Path

from PIL import Image

from mfcli.synthetic import make_picture, write_jpegs


def test_the_same_seed_gives_the_same_pixels() -> None:
    assert make_picture(3).tobytes() == make_picture(3).tobytes()
    assert make_picture(3).tobytes() != make_picture(4).tobytes()
    assert (make_picture(3).size, make_picture(3, 40, 30).size) == ((500, 375), (40, 30))


def test_files_are_as_large_as_photos(tmp_path: Path) -> None:
    paths = write_jpegs(tmp_path, 10)
    assert 30_000 < statistics.mean(path.stat().st_size for path in paths) < 70_000
    sizes = [Image.open(path).size for path in paths]
    assert len(set(sizes)) > 5
    assert any(height > width for width, height in sizes)
