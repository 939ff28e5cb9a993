"""Settings: environment variables, their precedence, and the defaults."""

import os
from pathlib import Path

import pytest

from mfcli.errors import UsageError
from mfcli.settings import Settings, usable_cores


def test_defaults(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    settings = Settings.from_environ({})
    assert settings == Settings(
        model="bundled",
        named_cache_dir=None,
        debug=False,
        hub_cache_dir=Path.home() / ".cache/huggingface/hub",
        torch_hub_dir=Path.home() / ".cache/torch/hub/checkpoints",
    )
    assert settings.cache_dir == Path("/somewhere/mfcli")


def test_the_environment_takes_precedence_over_defaults() -> None:
    environ = {"MF_MODEL": "caformer_s18", "MF_CACHE_DIR": "~/mf", "MF_DEBUG": "1"}
    settings = Settings.from_environ(environ)
    assert (settings.model, settings.named_cache_dir, settings.debug) == ("caformer_s18", Path("~/mf"), True)
    assert Settings.from_environ(environ).cache_dir == Path.home() / "mf"


def test_an_empty_variable_counts_as_unset() -> None:
    settings = Settings.from_environ({"MF_MODEL": "", "MF_CACHE_DIR": "", "MF_DEBUG": ""})
    assert settings.model == "bundled"
    assert settings.cache_dir.name == "mfcli"
    assert not settings.debug


def test_own_variables_take_precedence_over_those_of_other_tools() -> None:
    assert Settings.from_environ({"HF_ENDPOINT": "a", "MF_ENDPOINT": "b"}).endpoint == "b"
    assert Settings.from_environ({"HF_ENDPOINT": "a"}).endpoint == "a"
    assert [Settings.from_environ({name: "1"}).offline for name in ("MF_OFFLINE", "HF_HUB_OFFLINE", "X")] == [
        True,
        True,
        False,
    ]
    assert Settings.from_environ({}, offline=True).offline


def test_a_comparison_is_asked_for_by_variable_or_option() -> None:
    assert [Settings.from_environ({"MF_CHECK": value}).compare for value in ("1", "0", "")] == [True, False, False]
    assert Settings.from_environ({}, compare=True).compare


def test_caches_of_other_tools() -> None:
    named = Settings.from_environ({"HF_HUB_CACHE": "/a", "TORCH_HOME": "/t"})
    assert (named.hub_cache_dir, named.torch_hub_dir) == (Path("/a"), Path("/t/hub/checkpoints"))
    assert Settings.from_environ({"HF_HOME": "/h"}).hub_cache_dir == Path("/h/hub")
    assert Settings.from_environ({"XDG_CACHE_HOME": "/x"}).hub_cache_dir == Path("/x/huggingface/hub")


def test_a_user_without_a_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54_321)
    settings = Settings.from_environ({})
    assert settings.torch_hub_dir == Path("~/.cache/torch/hub/checkpoints")
    with pytest.raises(UsageError, match="cannot determine the cache directory") as caught:
        _ = settings.cache_dir
    assert caught.value.hint == "name a folder: MF_CACHE_DIR=DIR"
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: Path("~/.cache/mfcli"))  # older ones say so
    with pytest.raises(UsageError, match="cannot determine the cache directory"):
        _ = settings.cache_dir
    assert Settings.from_environ({"HF_HOME": "~nosuch/x", "MF_CACHE_DIR": "/c"}).cache_dir == Path("/c")


@pytest.mark.parametrize(
    ("own", "limits", "cores"),
    [
        ("0::/", {}, 4),
        ("0::/", {"": "max 100000"}, 4),
        ("0::/", {"": "200000 100000"}, 2),
        ("0::/", {"": "150000 100000"}, 2),
        ("0::/", {"": "1000 100000"}, 1),
        ("0::/", {"": "9900000 100000"}, 4),
        ("0::/a/b", {"a": "100000 100000", "a/b": "max 100000"}, 1),
        ("1:name=systemd:/", {"": "nonsense"}, 4),
    ],
)
def test_usable_cores(
    own: str, limits: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    (tmp_path / "own").write_text(own + "\n")
    for folder, limit in limits.items():
        (tmp_path / "cgroup" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / folder / "cpu.max").write_text(limit + "\n")
    assert usable_cores(tmp_path / "cgroup", tmp_path / "own") == cores
    assert usable_cores(tmp_path / "none", tmp_path / "none") == 4
