"""The pictures of a fine-tuning, decoded as those of a prediction are: in processes of their own and within limits.

Each is decoded once and kept, scaled down, as long as there is memory; beyond that it is decoded again in each epoch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from mfcli.errors import UsageError
from mfcli.inference.loading import LoadedPicture
from mfcli.inference.pipeline import Done, PipelineConfig, run_pipeline
from mfcli.inference.preparation import PictureOptions, Preparer
from mfcli.inputs.codecs import DecodeMode
from mfcli.inputs.dataset import count_names
from mfcli.inputs.source import Source
from mfcli.memory import available_bytes
from mfcli.models.preprocess import PreprocessPlan
from mfcli.results import Failure, Progress
from mfcli.settings import usable_cores

Decoded = Image | NDArray[np.float32]
"""A picture to learn from, in RGB, or one that is held out, preprocessed, float32 (3, H, W)."""
Lesson = tuple[int, int, Decoded]
"""The epoch, the index of a picture, and the picture."""

_SCALE = 3
"""The longer side of a picture to learn from over that of the input: of photos, the smallest crop is not enlarged."""
_UNKNOWN_MEMORY = 2**32


class DecodedPictures:
    """Batches of decoded pictures, for torch's loader; those that cannot be read are left out.

    Args:
        sources: all pictures.
        held_out: whether each is judged as it is instead of being learned, (N,).
        plan: the preprocessing.
        decode_timeout_s: seconds that decoding a picture may take.
        progress: told which pictures are left out.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        held_out: NDArray[np.bool_],
        plan: PreprocessPlan,
        decode_timeout_s: float,
        progress: Progress,
    ) -> None:
        self._sources, self._held_out, self._progress = sources, held_out, progress
        as_it_is = PictureOptions(decode_timeout_s=decode_timeout_s)
        to_learn = replace(as_it_is, decode=DecodeMode.SCALED, thumbnail_side=_SCALE * max(plan.crop_size))
        self._learned, self._judged = Preparer(plan, to_learn), Preparer(plan, as_it_is)
        self._known: dict[int, Decoded | Failure] = {}
        available = available_bytes()
        self._room_bytes = (_UNKNOWN_MEMORY if available is None else available) // 4
        self._epoch, self._batches = 0, list[NDArray[np.intp]]()

    def request(self, epoch: int, batches: Sequence[NDArray[np.intp]]) -> None:
        """Set what is iterated over next: the indices of the pictures in each batch."""
        self._epoch, self._batches = epoch, list(batches)

    def __iter__(self) -> Iterator[list[Lesson]]:
        """Yield the pictures of each batch that can be read, unless there are none.

        Raises:
            EngineError: there is too little memory for an ordinary picture.
            UsageError: none of all can be read.
        """
        workers = usable_cores()
        for preparer in (self._learned, self._judged):
            preparer.start(workers)
        config = PipelineConfig(workers, streams=1, batch_size=max(map(len, self._batches)))
        indices = np.concatenate(self._batches).tolist()
        pictures = run_pipeline(
            indices, self._prepare, list[Decoded | Failure], config, partial(self._prepare, alone=True)
        )
        lost: list[Source] = []
        is_any_read = False
        for batch in self._batches:
            lessons: list[Lesson] = []
            for index, picture in zip(batch.tolist(), pictures, strict=False):  # the next ones are of another batch
                if not isinstance(picture, Failure):
                    lessons.append((self._epoch, index, picture))
                elif index not in self._known:
                    lost.append(self._sources[index])
                self._keep(index, picture)
            if lessons:
                is_any_read = True
                yield lessons
        if lost:
            self._progress(describe_lost(lost))
        if not is_any_read:
            raise UsageError("the pictures can no longer be read", "put them back")

    def _prepare(self, index: int, *, alone: bool = False) -> Done[Decoded | Failure]:
        if (known := self._known.get(index)) is not None:
            return Done(known)
        preparer = self._judged if self._held_out[index] else self._learned
        prepared = preparer.prepare(self._sources[index], alone=alone, is_single=False)
        if isinstance(prepared, LoadedPicture):
            assert prepared.failure is not None  # else it would be prepared
            return Done(prepared.failure)
        return Done(prepared.pixels if prepared.thumbnail is None else prepared.thumbnail)

    def _keep(self, index: int, picture: Decoded | Failure) -> None:
        """Keep a picture if there is room, and a failure in any case: it is not waited for again."""
        if index not in self._known and (size_bytes := _count_bytes(picture)) <= self._room_bytes:
            self._known[index] = picture
            self._room_bytes -= size_bytes


def describe_lost(sources: Sequence[Source]) -> str:
    """Return what is said of pictures that were readable before."""
    what, names = "can no longer be read and", [source.shown_name for source in sources]
    return count_names(names, f"picture {what} is left out", f"pictures {what} are left out")


def _count_bytes(picture: Decoded | Failure) -> int:
    if isinstance(picture, Failure):
        return 0
    return picture.nbytes if isinstance(picture, np.ndarray) else 4 * picture.width * picture.height  # Pillow pads RGB
