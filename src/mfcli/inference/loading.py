"""From the file of a picture to the tensor of the model: decoding and preprocessing, in whichever process."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from mfcli.errors import FailureCode, PictureError
from mfcli.inputs.codecs import DecodeMode
from mfcli.inputs.decode import DecodedPicture, decode, read_size
from mfcli.inputs.jpeg import JPEG_FORMATS
from mfcli.memory import has_free_memory, is_memory_limited
from mfcli.models.preprocess import PreprocessPlan
from mfcli.results import Failure

_LEAST_SCALE = 2
"""How many times the pixels of the resized picture, along each side, decoding leaves at least."""
_ORDINARY_PIXELS = 2**26
"""More than most cameras take; a picture that is larger may not fit into memory."""
DOES_NOT_FIT = Failure(FailureCode.TOO_LARGE, "does not fit into memory")
PERHAPS_FOR_MEMORY = frozenset({FailureCode.DECODE, FailureCode.TRUNCATED, FailureCode.UNSUPPORTED})
"""Failures that decoders also report if memory is short."""
BYTES_PER_PIXEL = 20
"""Memory for decoding and resizing; a progressive JPEG takes most."""
ORDINARY_BYTES = 2**26
"""Memory for a picture of which nothing is known."""


class IsolationError(Exception):
    """No process that decodes can be started here."""


class OutOfMemoryError(MemoryError):
    """An ordinary picture does not fit into the memory that the run can give it."""


@dataclass(frozen=True, slots=True)
class LoadedPicture:
    """A loaded picture, or why it could not be loaded.

    Attributes:
        width: pixels, upright; None if it could not be decoded.
        height: likewise.
        pixels: float32 (3, H, W); None if it failed.
        thumbnail: the picture scaled down, if that was asked for.
        failure: why it failed.
        spare_s: seconds of processor time for a JPEG that decode=scaled would scale down; 0 for others.
    """

    width: int | None = None
    height: int | None = None
    pixels: NDArray[np.float32] | None = None
    thumbnail: Image | None = None
    failure: Failure | None = None
    spare_s: float = 0.0


@dataclass(frozen=True)
class PictureLoader:
    """How pictures are decoded and preprocessed.

    Attributes:
        plan: the preprocessing.
        exif: whether pictures are turned upright by their EXIF orientation.
        max_pixels: the largest picture that is decoded or resized to, in pixels.
        formats: the formats that are decoded, by Pillow's names.
        thumbnail_side: width and height in pixels of thumbnails, at most; None for none.
        decode: whether JPEGs may be decoded at a fraction of their size.
    """

    plan: PreprocessPlan
    exif: bool
    max_pixels: int
    formats: tuple[str, ...]
    thumbnail_side: int | None
    decode: DecodeMode = DecodeMode.EXACT

    def load(self, file: BinaryIO) -> LoadedPicture:
        """Decode and preprocess a picture.

        Raises:
            MemoryError: it does not fit into memory.
        """
        started_s = time.thread_time()
        try:
            picture = decode(
                file,
                exif=self.exif,
                max_pixels=self.max_pixels,
                formats=self.formats,
                least_side=self._least_side if self.decode is DecodeMode.SCALED else None,
            )
        except PictureError as error:
            return LoadedPicture(failure=Failure(error.code, error.message))
        loaded = self.preprocess(picture)
        return replace(loaded, spare_s=time.thread_time() - started_s) if self._could_be_scaled(picture) else loaded

    def preprocess(self, picture: DecodedPicture) -> LoadedPicture:
        """Preprocess a decoded picture.

        Raises:
            MemoryError: it does not fit into memory.
        """
        try:
            pixels = self.plan.apply(
                picture.stored, self.max_pixels, turn=picture.turn, full_size=(picture.width, picture.height)
            )
        except PictureError as error:
            return LoadedPicture(picture.width, picture.height, failure=Failure(error.code, error.message))
        thumbnail = picture.make_thumbnail(self.thumbnail_side) if self.thumbnail_side else None
        return LoadedPicture(picture.width, picture.height, pixels, thumbnail)

    @property
    def _least_side(self) -> int:
        return _LEAST_SCALE * self.plan.resize_shorter_side

    def _could_be_scaled(self, picture: DecodedPicture) -> bool:
        """Whether a picture that was decoded in full size would be scaled down with decode=scaled."""
        if self.decode is DecodeMode.SCALED or picture.format not in JPEG_FORMATS:
            return False
        return min(picture.width, picture.height) >= 2 * self._least_side

    def count_pixels(self, file: BinaryIO) -> int | None:
        """Return the pixels of a picture by its header, as `count_resized` does.

        Returns:
            None if memory may be too short to read it, 0 if it cannot be read at all.
        """
        try:
            file.seek(0)
            return self.count_resized(*read_size(file, self.formats))
        except PictureError:
            file.seek(0)
            start = file.read(8)
            return None if start[:4] == b"RIFF" or start[4:] == b"ftyp" else 0  # others are not decoded to be opened
        except (MemoryError, ZeroDivisionError):
            return None

    def count_resized(self, width: int, height: int) -> int:
        """Return the pixels of this size, before or after resizing, whichever are more."""
        resized = self.plan.compute_resized_size(width, height)
        return max(width * height, resized[0] * resized[1])


def is_short_of_memory(pixels: int | None) -> bool:
    """Return whether a picture of so many pixels, None if unknown, would not fit into what memory is free now."""
    return not has_free_memory(ORDINARY_BYTES if pixels is None else BYTES_PER_PIXEL * pixels)


def make_timeout(timeout_s: float) -> LoadedPicture:
    """Return the failure of a picture that takes too long."""
    return LoadedPicture(
        failure=Failure(FailureCode.TIMEOUT, f"decoding takes longer than decode_timeout_s={timeout_s:g}")
    )


def load_here(
    load: Callable[[], LoadedPicture], count_pixels: Callable[[], int | None], *, alone: bool, timeout_s: float
) -> LoadedPicture:
    """Load a picture in this process, in a thread that is left behind if it takes too long or Ctrl-C is pressed.

    Args:
        load: loads it.
        count_pixels: returns how many it has, if that is known.
        alone: whether no other picture is being loaded; then a lack of memory is decided, else only reported.
        timeout_s: the time that it may take.

    Raises:
        MemoryError: memory is short, perhaps because of the other pictures.
        OutOfMemoryError: there is too little memory for an ordinary picture.
    """
    try:
        loaded = _call_in_time(load, timeout_s)
    except TimeoutError:
        return make_timeout(timeout_s)
    except MemoryError:
        loaded = LoadedPicture(failure=DOES_NOT_FIT)
    # here the exceptions are gone, whose tracebacks hold what was decoded so far
    failure = loaded.failure
    is_certain = failure is DOES_NOT_FIT
    if is_certain or (failure is not None and failure.code in PERHAPS_FOR_MEMORY and is_memory_limited()):
        if not alone:
            raise MemoryError
        pixels = count_pixels()
        is_ordinary = pixels is not None and pixels <= _ORDINARY_PIXELS
        if (is_certain and is_ordinary) or is_short_of_memory(pixels if is_ordinary else None):
            raise OutOfMemoryError
    return loaded


def _call_in_time(load: Callable[[], LoadedPicture], timeout_s: float) -> LoadedPicture:
    """Call a function in a thread.

    Raises:
        TimeoutError: it takes too long.
        MemoryError: memory runs out.
    """
    answers: queue.SimpleQueue[LoadedPicture | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(load())
        except BaseException as error:
            answers.put(error)

    try:
        threading.Thread(target=run, daemon=True, name="mf-load").start()
    except RuntimeError:  # a limit on processes
        return load()
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, BaseException):
        raise answer
    return answer
