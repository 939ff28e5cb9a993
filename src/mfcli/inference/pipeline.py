"""A threaded batch pipeline with ordered results: read items, prepare each one, compute in batches.

A feeder thread reads the items, worker threads prepare them one at a time, compute threads process prepared items in
batches, and the caller iterates over the results in the items' order. At most a window of items is in flight, so memory
is constant and a slow consumer slows down the feeder (backpressure). A batch is computed once it is full, once no more
items are on their way to it, or after a short wait, so results never wait for items that have not arrived yet. The
pipeline knows nothing about pictures.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from mfcli.errors import threads_error

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

_FIRST_BATCH_SIZE = 8
_MAX_WAIT_S = 0.2
"""How long a prepared item waits for its batch to fill while other items are being prepared."""


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """Returned by `prepare` for an item that needs no computing, such as a failure."""

    result: Result


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """The numbers of threads and the batch size of a pipeline.

    Attributes:
        workers: number of threads that prepare items.
        streams: number of threads that compute, each its own batch.
        batch_size: number of items in a full batch.
        max_weight: weight of the items that are not prepared yet from which on no more are read.
        max_started: number of items that were started and wait for a worker, besides the others in flight.
    """

    workers: int
    streams: int
    batch_size: int
    max_weight: int = 2**26
    max_started: int = 64

    @property
    def window(self) -> int:
        """Maximum number of items in flight: a batch in each stream, and enough others to fill the next ones."""
        return self.batch_size * (2 * self.streams + 1) + 2 * self.workers


class _Slot(Generic[Item, Prepared, Result]):
    """One item in flight."""

    __slots__ = ("error", "is_done", "is_started", "item", "prepared", "ready_at", "result", "weight")

    def __init__(self, item: Item, weight: int, is_started: bool) -> None:
        self.item: Item | None = item
        self.weight = weight
        self.is_started = is_started
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
        config: PipelineConfig,
        prepare_alone: Callable[[Item], Prepared | Done[Result]],
        weigh: Callable[[Item], int],
        start: Callable[[Item], bool],
    ) -> None:
        self._items = items
        self._weigh = weigh
        self._start = start
        self._prepare = prepare
        self._prepare_alone = prepare_alone
        self._compute = compute
        self._config = config
        lock = threading.Lock()  # guards everything below
        self._can_feed = threading.Condition(lock)  # wakes the feeder: there is room for another item
        self._can_prepare = threading.Condition(lock)  # wakes a worker: an item waits to be prepared
        self._can_compute = threading.Condition(lock)  # wakes compute threads: a batch may be ready
        self._can_yield = threading.Condition(lock)  # wakes the caller: the oldest item may be done
        self._in_flight: deque[_Slot[Item, Prepared, Result]] = deque()  # in input order
        self._to_prepare: deque[_Slot[Item, Prepared, Result]] = deque()
        self._ready: deque[_Slot[Item, Prepared, Result]] = deque()
        self._preparing = 0  # items that workers hold
        self._started = 0  # items that were started and wait for a worker
        self._weight = 0  # of the items that are not prepared yet
        self._out_of_memory = 0  # items that wait until no other is being prepared, or have come so far
        self._batch_size = min(_FIRST_BATCH_SIZE, config.batch_size)  # doubles each time: the first results come soon
        self._input_ended = False
        self._feed_error: BaseException | None = None
        self._stopped = False

    def iter_results(self) -> Iterator[Result]:
        try:
            self._start_threads()
            while (slot := self._wait_for_oldest()) is not None:
                if slot.error is not None:
                    raise slot.error
                yield slot.result  # type: ignore[misc]  # set once the slot is done
            if self._feed_error is not None:
                raise self._feed_error
        finally:
            with self._can_feed:
                self._stopped = True
                for condition in (self._can_feed, self._can_prepare, self._can_compute):
                    condition.notify_all()

    def _start_threads(self) -> None:
        targets = [self._feed, *[self._work] * self._config.workers, *[self._run] * self._config.streams]
        for target in targets:
            thread = threading.Thread(target=target, daemon=True, name=f"mf-{target.__name__.strip('_')}")
            try:
                thread.start()
            except RuntimeError as error:
                raise threads_error(len(targets), error) from error

    def _wait_for_oldest(self) -> _Slot[Item, Prepared, Result] | None:
        """Remove and return the oldest item once it is done; None after the last one."""
        with self._can_yield:
            while not (self._in_flight[0].is_done if self._in_flight else self._input_ended):
                self._can_yield.wait()
            if not self._in_flight:
                return None
            slot = self._in_flight.popleft()
            self._can_feed.notify()
            return slot

    def _feed(self) -> None:
        """Run the feeder thread: admit items while there is room."""
        try:
            items = iter(self._items)
            while self._wait_for_room():
                try:
                    item = next(items)
                except StopIteration:
                    return
                slot: _Slot[Item, Prepared, Result] = _Slot(item, self._weigh(item), self._start(item))
                with self._can_feed:
                    self._weight += slot.weight
                    self._started += slot.is_started
                    self._in_flight.append(slot)
                    self._to_prepare.append(slot)
                    self._can_prepare.notify()
        except BaseException as error:
            self._feed_error = error
        finally:
            with self._can_feed:
                self._input_ended = True
                self._can_yield.notify()

    def _wait_for_room(self) -> bool:
        """Wait until another item may be read; return whether any is wanted."""
        with self._can_feed:
            while self._is_full() and not self._stopped:
                self._can_feed.wait()
            return not self._stopped

    def _is_full(self) -> bool:
        """Whether the window is full, or the queue before the workers, by number or weight."""
        return (
            len(self._in_flight) - self._started >= self._config.window
            or len(self._to_prepare) - self._started >= 2 * self._config.workers
            or self._started >= self._config.max_started
            or self._weight >= self._config.max_weight
        )

    def _work(self) -> None:
        """Run a worker thread: prepare one item after another."""
        while True:
            with self._can_prepare:
                while (not self._to_prepare or self._out_of_memory) and not self._stopped:
                    self._can_prepare.wait()
                if self._stopped:
                    return
                slot = self._to_prepare.popleft()
                self._started -= slot.is_started
                self._preparing += 1
                self._can_feed.notify()
            prepared: Prepared | None = None
            try:
                outcome = self._prepare_once(slot.item)  # type: ignore[arg-type]  # dropped only below
                if outcome is None:
                    outcome = self._retry_alone(slot.item)  # type: ignore[arg-type]
                if isinstance(outcome, Done):
                    slot.result = outcome.result
                else:
                    prepared = outcome
            except BaseException as error:
                slot.error = error
            slot.item = None
            with self._can_prepare:
                self._preparing -= 1
                self._weight -= slot.weight
                self._can_feed.notify()
                if self._out_of_memory:
                    self._can_prepare.notify_all()
                if prepared is None:
                    slot.is_done = True
                    self._can_yield.notify()
                else:
                    slot.prepared, slot.ready_at = prepared, time.monotonic()
                    self._ready.append(slot)
                self._can_compute.notify()

    def _prepare_once(self, item: Item) -> Prepared | Done[Result] | None:
        """Prepare an item; None if memory runs out, without the exception, whose traceback holds what it has taken."""
        try:
            return self._prepare(item)
        except MemoryError:
            return None

    def _retry_alone(self, item: Item) -> Prepared | Done[Result]:
        """Prepare an item again while no other is being prepared: those may have taken the memory."""
        with self._can_prepare:
            self._out_of_memory += 1
            self._preparing -= 1
            while self._preparing:
                self._can_prepare.wait()
            self._preparing += 1
        try:
            return self._prepare_alone(item)
        finally:
            with self._can_prepare:
                self._out_of_memory -= 1
                self._can_prepare.notify_all()

    def _run(self) -> None:
        """Run a compute thread: compute one batch after another."""
        while (batch := self._wait_for_batch()) is not None:
            try:
                results = self._compute([slot.prepared for slot in batch])  # type: ignore[misc]  # all are prepared
                for slot, result in zip(batch, results, strict=True):
                    slot.result = result
            except BaseException as error:
                for slot in batch:
                    slot.error = error
            with self._can_yield:
                for slot in batch:
                    slot.prepared = None
                    slot.is_done = True
                self._can_yield.notify()
                self._can_compute.notify()

    def _wait_for_batch(self) -> list[_Slot[Item, Prepared, Result]] | None:
        """Remove and return the prepared items to compute next; None once the pipeline has stopped."""
        with self._can_compute:
            while not self._stopped:
                waited_s = time.monotonic() - self._ready[0].ready_at if self._ready else 0.0
                more_coming = self._preparing or self._to_prepare
                is_full = len(self._ready) >= self._batch_size
                if self._ready and (is_full or not more_coming or waited_s >= _MAX_WAIT_S):
                    batch = [self._ready.popleft() for _ in range(min(self._batch_size, len(self._ready)))]
                    self._batch_size = min(2 * self._batch_size, self._config.batch_size)
                    return batch
                self._can_compute.wait(_MAX_WAIT_S - waited_s if self._ready else None)
        return None


def run_pipeline(
    items: Iterable[Item],
    prepare: Callable[[Item], Prepared | Done[Result]],
    compute: Callable[[Sequence[Prepared]], Sequence[Result]],
    config: PipelineConfig,
    prepare_alone: Callable[[Item], Prepared | Done[Result]] | None = None,
    weigh: Callable[[Item], int] = lambda _: 0,
    start: Callable[[Item], bool] = lambda _: False,
) -> Iterator[Result]:
    """Yield one result per item, in the items' order.

    Args:
        items: read in the feeder thread, at most `config.window` items ahead of the results.
        prepare: called in a worker thread with one item; returns the input of `compute`, or a `Done` result.
        compute: called in a compute thread with 1 to `config.batch_size` prepared items; returns as many results.
        config: numbers of threads, and the batch size.
        prepare_alone: called again with an item for which `prepare` raised MemoryError, while no other is being
            prepared; None for `prepare`.
        weigh: returns what an item counts for `config.max_weight`: the bytes that it holds, for example.
        start: begins something that takes a while without a worker, such as a download, and returns whether it did.

    Raises:
        BaseException: whatever `items`, `prepare` or `compute` raises, in place of the first result it affects.
        EngineError: the threads cannot be started.
    """
    return _Pipeline(items, prepare, compute, config, prepare_alone or prepare, weigh, start).iter_results()
