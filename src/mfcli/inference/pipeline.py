"""The batch pipeline: items are prepared in threads, computed in batches, and come out in the order they came in.

It knows nothing of pictures. A feeder thread reads the items, worker threads prepare one at a time, compute threads
take what is prepared in batches, and the caller's thread gets the results. How many items are under way is bounded, so
memory is flat however many there are, and a slow reader of the results slows everything down. A batch is computed when
it is full, or when nothing more is on its way to it: results do not wait for items that nobody has named yet.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from mfcli.errors import EngineError

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

_FIRST_BATCH = 8
_PATIENCE_S = 0.2
"""How long something prepared waits for others to share its batch while those are being prepared."""


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """What `prepare` returns for an item that needs no computing, a failure for instance."""

    result: Result


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """How wide the pipeline is.

    Attributes:
        workers: threads that prepare.
        streams: threads that compute, each a batch of its own.
        batch_size: items in a full batch.
    """

    workers: int
    streams: int
    batch_size: int

    @property
    def window(self) -> int:
        """Items under way at most: a batch in each stream, as many again ready or being prepared."""
        return self.batch_size * (2 * self.streams + 1) + 2 * self.workers


class _Slot(Generic[Item, Prepared, Result]):
    """One item on its way."""

    __slots__ = ("error", "is_done", "item", "prepared", "ready_at", "result")

    def __init__(self, item: Item) -> None:
        self.item: Item | None = item
        self.prepared: Prepared | None = None
        self.ready_at = 0.0
        self.result: Result | None = None
        self.error: BaseException | None = None
        self.is_done = False


class _Pipeline(Generic[Item, Prepared, Result]):
    def __init__(
        self,
        items: Iterable[Item],
        prepare: Callable[[Item], Prepared | Done[Result]],
        compute: Callable[[Sequence[Prepared]], Sequence[Result]],
        shape: PipelineConfig,
    ) -> None:
        self._items = items
        self._prepare = prepare
        self._compute = compute
        self._shape = shape
        lock = threading.Lock()
        self._room = threading.Condition(lock)  # for the feeder: fewer are under way
        self._waiting = threading.Condition(lock)  # for workers: something to prepare
        self._filled = threading.Condition(lock)  # for compute threads: a batch may be complete
        self._finished = threading.Condition(lock)  # for the caller: the oldest may be done
        self._order: deque[_Slot[Item, Prepared, Result]] = deque()
        self._to_prepare: deque[_Slot[Item, Prepared, Result]] = deque()
        self._ready: deque[_Slot[Item, Prepared, Result]] = deque()
        self._preparing = 0
        self._full = min(_FIRST_BATCH, shape.batch_size)  # grows: the first results come soon
        self._fed = False
        self._feed_error: BaseException | None = None
        self._stopped = False

    def results(self) -> Iterator[Result]:
        try:
            yield from self._started()
        finally:
            with self._room:
                self._stopped = True
                for condition in (self._room, self._waiting, self._filled):
                    condition.notify_all()

    def _started(self) -> Iterator[Result]:
        targets = [self._feed, *[self._work] * self._shape.workers, *[self._run] * self._shape.streams]
        for target in targets:
            thread = threading.Thread(target=target, daemon=True, name=f"mf-{target.__name__.strip('_')}")
            try:
                thread.start()
            except RuntimeError as error:  # a limit on processes; those that were started end
                raise EngineError(f"not so many threads can be started here: {error}", "--workers 1") from error
        while (slot := self._oldest()) is not None:
            if slot.error is not None:
                raise slot.error
            yield slot.result  # type: ignore[misc]  # set when it is done
        if self._feed_error is not None:
            raise self._feed_error

    def _oldest(self) -> _Slot[Item, Prepared, Result] | None:
        """The next result in order, waited for; None when there are no more."""
        with self._finished:
            while not (self._order[0].is_done if self._order else self._fed):
                self._finished.wait()
            if not self._order:
                return None
            slot = self._order.popleft()
            self._room.notify()
            return slot

    def _feed(self) -> None:
        try:
            for item in self._items:
                slot: _Slot[Item, Prepared, Result] = _Slot(item)
                with self._room:
                    while self._is_full() and not self._stopped:
                        self._room.wait()
                    if self._stopped:
                        return
                    self._order.append(slot)
                    self._to_prepare.append(slot)
                    self._waiting.notify()
        except BaseException as error:
            self._feed_error = error
        finally:
            with self._room:
                self._fed = True
                self._finished.notify()

    def _is_full(self) -> bool:
        """Whether enough is under way, or waits with its bytes, which may be many, for being prepared."""
        return len(self._order) >= self._shape.window or len(self._to_prepare) >= 2 * self._shape.workers

    def _work(self) -> None:
        while True:
            with self._waiting:
                while not self._to_prepare and not self._stopped:
                    self._waiting.wait()
                if self._stopped:
                    return
                slot = self._to_prepare.popleft()
                self._preparing += 1
                self._room.notify()
            prepared: Prepared | None = None
            try:
                made = self._prepare(slot.item)  # type: ignore[arg-type]  # dropped only below
                if isinstance(made, Done):
                    slot.result = made.result
                else:
                    prepared = made
            except BaseException as error:
                slot.error = error
            slot.item = None
            with self._waiting:
                self._preparing -= 1
                if prepared is None:
                    slot.is_done = True
                    self._finished.notify()
                else:
                    slot.prepared, slot.ready_at = prepared, time.monotonic()
                    self._ready.append(slot)
                self._filled.notify()

    def _run(self) -> None:
        while (batch := self._batch()) is not None:
            try:
                results = self._compute([slot.prepared for slot in batch])  # type: ignore[misc]  # all are prepared
                for slot, result in zip(batch, results, strict=True):
                    slot.result = result
            except BaseException as error:
                for slot in batch:
                    slot.error = error
            with self._finished:
                for slot in batch:
                    slot.prepared = None
                    slot.is_done = True
                self._finished.notify()
                self._filled.notify()

    def _batch(self) -> list[_Slot[Item, Prepared, Result]] | None:
        """Wait for a batch that should be computed now; None when the pipeline has stopped."""
        with self._filled:
            while not self._stopped:
                waited_s = time.monotonic() - self._ready[0].ready_at if self._ready else 0.0
                on_their_way = self._preparing or self._to_prepare
                if self._ready and (len(self._ready) >= self._full or not on_their_way or waited_s >= _PATIENCE_S):
                    batch = [self._ready.popleft() for _ in range(min(self._full, len(self._ready)))]
                    self._full = min(2 * self._full, self._shape.batch_size)
                    return batch
                self._filled.wait(_PATIENCE_S - waited_s if self._ready else None)
        return None


def run_pipeline(
    items: Iterable[Item],
    prepare: Callable[[Item], Prepared | Done[Result]],
    compute: Callable[[Sequence[Prepared]], Sequence[Result]],
    shape: PipelineConfig,
) -> Iterator[Result]:
    """Yield one result per item, in the items' order.

    Args:
        items: read in a thread of its own, no further ahead than `shape.window`; what it raises is raised here after
            the results of the items before.
        prepare: called in a worker thread with one item; returns what `compute` takes, or a `Done` result.
        compute: called in a compute thread with 1 to `shape.batch_size` prepared items; returns as many results.
        shape: how many threads, and how large a batch.

    Raises:
        BaseException: whatever `items`, `prepare` or `compute` raise, in the place of the first result it concerns.
        EngineError: so many threads cannot be started.
    """
    return _Pipeline(items, prepare, compute, shape).results()
