"""From a source to the tensor of its picture, in a thread of the run or in a process of its own.

A picture that cannot be decoded is prepared nevertheless: as its failure.
"""

import threading
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from mfcli.errors import PictureError, memory_error
from mfcli.files import is_url
from mfcli.inference.loading import IsolationError, LoadedPicture, OutOfMemoryError, PictureLoader, load_here
from mfcli.inputs.codecs import DecodeMode, formats_with
from mfcli.inputs.pictures import Picture, make_source
from mfcli.inputs.selection import Selection
from mfcli.inputs.source import Source
from mfcli.models.preprocess import PreprocessPlan
from mfcli.results import Failure
from mfcli.settings import DEFAULT_DECODE_TIMEOUT_S, DEFAULT_MAX_PIXELS

if TYPE_CHECKING:
    from mfcli.inference.isolation import DecoderPool

_MAX_PIXELS_HERE = 2**24
"""A single picture with more is loaded in a process of its own: its decoder may not be interruptible."""


@dataclass(frozen=True, slots=True)
class PictureOptions:
    """How pictures are opened and decoded.

    Attributes:
        exif: whether pictures are turned upright by their EXIF orientation.
        decode: whether JPEGs may be decoded at 1/2, 1/4 or 1/8 of their size, but at least twice what they are resized
            to.
        max_pixels: the largest picture that is decoded or resized to, in pixels.
        formats: the formats that are decoded, see `inputs.codecs.formats_with`.
        offline: whether pictures may not be fetched from URLs.
        thumbnail_side: width and height in pixels of the thumbnails in results, at most; None for none.
        isolate: whether pictures are decoded in processes of their own where they are many, come from an archive or a
            URL, or are large; False for never, with fewer guarantees.
        decode_timeout_s: seconds that decoding a picture may take.
        column: the column of Parquet files that is read, see `Selection`.
        keep: what rows keep, see `Selection`.
    """

    exif: bool = True
    decode: DecodeMode = DecodeMode.EXACT
    max_pixels: int = DEFAULT_MAX_PIXELS
    formats: tuple[str, ...] = formats_with(())
    offline: bool = False
    thumbnail_side: int | None = None
    isolate: bool = True
    decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S
    column: str | None = None
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PreparedPicture:
    """A decoded and preprocessed picture, ready for the engine; `pixels` is float32 (3, H, W)."""

    source: Source
    width: int
    height: int
    pixels: NDArray[np.float32]
    thumbnail: Image | None


class _Clock:
    """Adds up seconds of several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        with self._lock:
            self.total_s += seconds


class Preparer:
    """Decodes and preprocesses pictures for one model."""

    def __init__(self, plan: PreprocessPlan, options: PictureOptions) -> None:
        """Bind the options to a model's preprocessing; processes are started on use."""
        self._options = options
        self._isolate = options.isolate
        self._loader = PictureLoader(
            plan, options.exif, options.max_pixels, options.formats, options.thumbnail_side, options.decode
        )
        self._selection = Selection(offline=options.offline)
        self._clock = _Clock()

    @property
    def spare_s(self) -> float:
        """Seconds of processor time, so far, for decoding and resizing JPEGs that decode=scaled would scale down."""
        return self._clock.total_s

    def make_source(self, picture: Picture) -> Source:
        """Return a caller's picture as a source.

        Raises:
            TypeError, ValueError: it is none, see `make_source`.
        """
        options = self._options
        return make_source(picture, exif=options.exif, max_pixels=options.max_pixels, selection=self._selection)

    def start(self, workers: int) -> None:
        """Start the processes that decode, if any do."""
        if self._isolate:
            try:
                self._pool.start(workers)
            except IsolationError:
                self._isolate = False

    @cached_property
    def _pool(self) -> "DecoderPool":
        from mfcli.inference.isolation import DecoderPool  # takes 10 ms, which a single picture does without

        return DecoderPool(self._loader, self._options.decode_timeout_s)

    def prepare(self, source: Source, *, alone: bool, is_single: bool) -> PreparedPicture | LoadedPicture:
        """Decode and preprocess a picture; return a `LoadedPicture` if that fails, with the failure.

        Args:
            source: the picture.
            alone: whether no other picture is being prepared; then a lack of memory is decided, else only reported.
            is_single: whether it is not one of many, and can be loaded in this process unless it is a stranger's.

        Raises:
            MemoryError: memory is short, perhaps because of the other pictures.
            EngineError: there is too little memory for an ordinary picture.
        """
        try:
            loaded = self._load(source, alone, is_single)
        except PictureError as error:
            return LoadedPicture(failure=Failure(error.code, error.message))
        except OutOfMemoryError as error:
            raise memory_error(f"decode {source.shown_name}") from error
        if loaded.failure is not None:
            return loaded
        assert loaded.pixels is not None  # it has not failed
        self._clock.add(loaded.spare_s)
        return PreparedPicture(source, loaded.width or 0, loaded.height or 0, loaded.pixels, loaded.thumbnail)

    def _load(self, source: Source, alone: bool, is_single: bool) -> LoadedPicture:
        if source.decoded is not None:
            size = source.decoded.width, source.decoded.height
            load = partial(self._loader.preprocess, source.decoded)
            count = partial(self._loader.count_resized, *size)
            return load_here(load, count, alone=alone, timeout_s=self._options.decode_timeout_s)
        with source.open() as file:
            if self._isolate and not (is_single and self._is_harmless(source, file)):
                try:
                    return self._pool.load(file, alone=alone)
                except IsolationError:
                    self._isolate = False
                    return self._load(source, alone, is_single)  # the file may have been read
            return load_here(
                partial(self._loader.load, file),
                partial(self._loader.count_pixels, file),
                alone=alone,
                timeout_s=self._options.decode_timeout_s,
            )

    def _is_harmless(self, source: Source, file: BinaryIO) -> bool:
        """Whether a picture is the user's own, and not large."""
        if source.member is not None or is_url(source.argument):
            return False
        pixels = self._loader.count_pixels(file)
        file.seek(0)
        return pixels is None or pixels <= _MAX_PIXELS_HERE
