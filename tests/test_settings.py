"""Settings: what the environment says, and what holds where it says nothing."""

from pathlib import Path

from mfcli.settings import Settings


def test_defaults(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    settings = Settings.from_environ({})
    assert settings == Settings(model="bundled", named_cache_dir=None, debug=False)
    assert settings.cache_dir == Path("/somewhere/mfcli")


def test_the_environment_beats_the_defaults() -> None:
    environ = {"MF_MODEL": "caformer_s18", "MF_CACHE_DIR": "~/mf", "MF_DEBUG": "1"}
    assert Settings.from_environ(environ) == Settings("caformer_s18", Path("~/mf"), True)
    assert Settings.from_environ(environ).cache_dir == Path.home() / "mf"


def test_an_empty_variable_counts_as_unset() -> None:
    settings = Settings.from_environ({"MF_MODEL": "", "MF_CACHE_DIR": "", "MF_DEBUG": ""})
    assert settings.model == "bundled"
    assert settings.cache_dir.name == "mfcli"
    assert not settings.debug
