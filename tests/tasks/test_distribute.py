"""The side of a plan on Ray that needs no Ray: clusters that do not come or vanish, and what actors get of them."""

import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mfcli.errors import EngineError, UsageError
from mfcli.tasks import distribute as module
from mfcli.tasks.distribute import Cluster, distribute


@pytest.fixture
def closed_port() -> int:
    """Nothing listens there."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
    return port


@pytest.mark.parametrize("address", ["ray://host:10001", "host", "host:", ":6379", "host:port", ""])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(UsageError, match="is not the address of a cluster"):
        Cluster(address, None, False, 1).check()


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"ray is not installed\n.*metaformer-cli\[ray\]"):
        Cluster("local", None, False, 1).check()


def test_a_cluster_that_never_comes(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    shut_down: list[bool] = []
    fake = SimpleNamespace(data=SimpleNamespace(), shutdown=lambda: shut_down.append(True))
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.data", fake.data)
    started = time.monotonic()
    with pytest.raises(EngineError, match=f"there is no Ray cluster at 127.0.0.1:{closed_port} after 2 s"):
        distribute(lambda _: lambda _: None, [0], print, Cluster(f"127.0.0.1:{closed_port}", None, False, 2))
    assert 0.9 < time.monotonic() - started < 60  # it was tried again
    assert shut_down


def test_a_cluster_that_vanishes(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    monkeypatch.setattr(module, "_WATCH_S", 0.05)
    monkeypatch.setattr(module, "_LOST_S", 0.2)

    def rows() -> Iterator[dict[str, Any]]:
        yield {"outcome": 1}
        time.sleep(60)

    watched = module._watch(rows(), f"127.0.0.1:{closed_port}")
    assert next(watched) == {"outcome": 1}
    with pytest.raises(EngineError, match="is gone"):
        next(watched)
    with socket.create_server(("127.0.0.1", closed_port)):
        assert list(module._watch(iter([{"outcome": 2}]), f"127.0.0.1:{closed_port}")) == [{"outcome": 2}]


def test_an_error_of_a_worker_is_its_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def fail(_: int) -> None:
        raise UsageError("wrong")

    for make_worker, folder, message in (
        (fail, tmp_path, "wrong"),  # while it loads
        (lambda _: fail, tmp_path, "wrong"),
        (lambda _: len, tmp_path / "missing", "missing, where the command runs, cannot be used on"),
    ):
        (outcome,) = module._Actor(make_worker, 1, folder)({"shard": [3]})["outcome"]  # type: ignore[arg-type]
        assert message in str(outcome)


@pytest.mark.parametrize(
    ("nodes", "has_gpu", "threads", "actors"),
    [
        ([{"CPU": 2.0}], False, 2, [1]),
        ([{"CPU": 16.0}, {"CPU": 64.0}, {}], False, 4, [4, 16, 0]),
        ([{"CPU": 6.0}], False, 3, [2]),
        ([{"CPU": 4.0}, {"CPU": 7.0}], False, 1, [4, 7]),
        ([], False, 4, []),
        ([{"CPU": 32.0, "GPU": 4.0}, {"CPU": 64.0}], True, 8, [4, 0]),
        ([{"CPU": 2.0, "GPU": 4.0}], True, 1, [2]),
        ([{"CPU": 64.0}], True, 4, [0]),
    ],
)
def test_actors_fill_the_machines(
    nodes: list[dict[str, float]], has_gpu: bool, threads: int, actors: list[int]
) -> None:
    assert module._choose_threads(nodes, has_gpu=has_gpu) == threads
    assert [module._count_actors(node, threads, has_gpu=has_gpu) for node in nodes] == actors
