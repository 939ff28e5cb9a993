"""The pipeline: ordered results, errors in their place, bounded queues, and threads that end."""

import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import only_threads
from mfcli.errors import EngineError
from mfcli.inference.pipeline import Done, PipelineConfig, run_pipeline

CONFIGS = st.builds(PipelineConfig, st.integers(1, 5), st.integers(1, 3), st.integers(1, 7))
ITEMS = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.0, 0.0, 0.001])), max_size=60)


@settings(max_examples=150)
@given(items=ITEMS, config=CONFIGS)
def test_results_match_items_in_order(items: list[tuple[bool, float]], config: PipelineConfig) -> None:
    sizes = []

    def prepare(item: tuple[int, tuple[bool, float]]) -> int | Done[str]:
        number, (fails, seconds) = item
        if seconds:
            time.sleep(seconds)
        return Done(f"failed {number}") if fails else number

    def compute(batch: Sequence[int]) -> list[str]:
        sizes.append(len(batch))
        return [f"computed {number}" for number in batch]

    found = list(run_pipeline(enumerate(items), prepare, compute, config))
    assert found == [f"failed {i}" if fails else f"computed {i}" for i, (fails, _) in enumerate(items)]
    assert all(1 <= size <= config.batch_size for size in sizes)
    assert sum(sizes) == sum(not fails for fails, _ in items)


@settings(max_examples=60)
@given(count=st.integers(1, 40), at=st.integers(0, 39), where=st.sampled_from(["items", "prepare", "compute"]))
def test_an_error_takes_the_place_of_its_result(count: int, at: int, where: str) -> None:
    at %= count

    def items() -> Iterator[int]:
        for number in range(count):
            if where == "items" and number == at:
                raise LookupError(number)
            yield number

    def prepare(number: int) -> int:
        if where == "prepare" and number == at:
            raise LookupError(number)
        return number

    def compute(batch: Sequence[int]) -> list[int]:
        if where == "compute" and at in batch:
            raise LookupError(at)
        return list(batch)

    found: list[int] = []
    with pytest.raises(LookupError):
        found.extend(iter_into(found, run_pipeline(items(), prepare, compute, PipelineConfig(3, 2, 1))))
    assert found == list(range(at))


def iter_into(found: list[int], results: Iterator[int]) -> Iterator[int]:
    for result in results:
        found.append(result)
    return iter(())


def test_no_items() -> None:
    assert list(run_pipeline([], lambda item: item, lambda batch: list(batch), PipelineConfig(2, 2, 4))) == []


def test_a_result_does_not_wait_for_later_items() -> None:
    more = threading.Event()

    def items() -> Iterator[int]:
        yield from range(3)
        assert more.wait(20)
        yield 3

    results = run_pipeline(items(), lambda item: item, lambda batch: list(batch), PipelineConfig(2, 1, 8))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    more.set()
    assert list(results) == [3]


def test_items_are_read_at_most_a_window_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    config = PipelineConfig(2, 2, 4)
    results = run_pipeline(items(), lambda item: item, lambda batch: list(batch), config)
    for expected in range(1, 50):
        assert next(results) == expected
    time.sleep(0.1)
    assert taken <= 50 + config.window + 1
    results.close()  # type: ignore[attr-defined]


def test_items_that_wait_weigh_no_more_than_the_limit() -> None:
    ready = threading.Event()
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    def prepare(item: int) -> int:
        assert ready.wait(20)
        return item

    config = PipelineConfig(4, 1, 4, max_weight=100)
    results = run_pipeline(items(), prepare, lambda batch: list(batch), config, weigh=lambda _: 40)
    waiting = threading.Thread(target=list, args=(results,), daemon=True)
    waiting.start()
    time.sleep(0.2)
    assert len(taken) == 3
    ready.set()
    waiting.join(20)
    assert len(taken) == 20


def test_the_threads_end_with_the_results() -> None:
    before = set(threading.enumerate())
    results = run_pipeline(range(1000), lambda item: item, lambda batch: list(batch), PipelineConfig(4, 2, 4))
    next(results)
    started = set(threading.enumerate()) - before
    results.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while any(thread.is_alive() for thread in started) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert started
    assert not any(thread.is_alive() for thread in started)


def test_batches_are_full_while_items_are_plenty() -> None:
    sizes = []

    def compute(batch: Sequence[int]) -> list[int]:
        sizes.append(len(batch))
        time.sleep(0.005)  # longer than it takes to prepare a batch
        return list(batch)

    assert len(list(run_pipeline(range(400), lambda item: item, compute, PipelineConfig(2, 1, 8)))) == 400
    assert sizes.count(8) > 40


def test_the_queue_before_the_workers_is_bounded() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for taken in range(1, 1001):  # noqa: UP028
            yield taken

    go = threading.Event()
    taken_then = []

    def look() -> None:
        taken_then.append(taken)
        go.set()

    def prepare(item: int) -> int:
        assert go.wait(20)
        return item

    results = run_pipeline(items(), prepare, lambda batch: list(batch), PipelineConfig(2, 2, 128))
    threading.Timer(0.3, look).start()
    assert next(results) == 1
    assert taken_then[0] <= 2 + 2 * 2 + 1  # in the workers, in the queue, and in the feeder
    results.close()  # type: ignore[attr-defined]


def test_items_that_were_started_wait_besides_the_others() -> None:
    started: list[int] = []
    is_full, goes_on = threading.Event(), threading.Event()
    config = PipelineConfig(workers=2, streams=1, batch_size=1, max_started=10)

    def start(item: int) -> bool:
        started.append(item)
        if len(started) == 12:  # two are with the workers
            is_full.set()
        return True

    def prepare(item: int) -> int:
        assert goes_on.wait(10)
        return item

    results = run_pipeline(range(30), prepare, lambda batch: batch, config, start=start)
    threading.Timer(0.3, goes_on.set).start()
    first = next(results)
    assert is_full.is_set()
    assert [first, *results] == list(range(30)) == started


def test_an_item_that_runs_out_of_memory_is_prepared_again_alone() -> None:
    lock, active, most = threading.Lock(), 0, 0

    def prepare(item: int, *, alone: bool) -> int:
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
            beside = active - 1
        time.sleep(0.002)
        with lock:
            active -= 1
        if alone:
            assert not beside
        elif item % 5 == 0:
            raise MemoryError
        return item

    found = run_pipeline(
        range(100), partial(prepare, alone=False), list, PipelineConfig(4, 2, 4), partial(prepare, alone=True)
    )
    assert list(found) == list(range(100))
    assert most > 1


def test_a_limit_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    started = only_threads(2, monkeypatch)
    with pytest.raises(EngineError, match="cannot start 7 threads .*too little memory, or a limit on processes"):
        list(run_pipeline(range(9), lambda item: item, lambda batch: list(batch), PipelineConfig(4, 2, 4)))
    for thread in started:
        thread.join(10)
    assert not any(thread.is_alive() for thread in started)
