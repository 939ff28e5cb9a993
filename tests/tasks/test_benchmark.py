"""mf benchmark: rows, consistent figures, and rows with an error."""

from pathlib import Path
from typing import Any

import pytest

from mfcli.errors import ExitCode, ModelError, OutputError, UsageError
from mfcli.models.checkpoint import load_checkpoint
from mfcli.models.registry import Variant, find_variant
from mfcli.results import Step
from mfcli.settings import Settings
from mfcli.tasks import benchmark as task
from mfcli.tasks.benchmark import BenchmarkPlan, Rate, benchmark
from mfcli.tasks.benchmark_worker import Case

QUICK: dict[str, Any] = {"seconds": 0.1, "rounds": 2}


@pytest.fixture
def settings() -> Settings:
    return Settings.from_environ(offline=True)


@pytest.mark.slow
def test_the_figures_of_a_row_are_consistent(settings: Settings, coffee: Path) -> None:
    notes: list[object] = []
    plan = BenchmarkPlan(
        ("bundled", "convformer_t8_64"),
        batch_sizes=(3,),
        images=(str(coffee.parent),),
        threads=1,
        workers=1,
        **QUICK,
    )
    (row,) = benchmark(plan, settings, notes.append)
    assert (row.case.model, row.error, notes[0]) == ("convformer_t8_64", None, "measuring")
    case = "convformer_t8_64, auto, fp32, batches of 3"
    rounds = [f"{what}, round {number}: {case}" for number in (1, 2) for what in ("engine", "end to end")]
    descriptions = [f"loading: {case}", *rounds, f"latency: {case}"]
    assert notes[1:] == [Step(description, done, 6) for done, description in enumerate(descriptions)]
    assert row.setup is not None
    assert (row.setup.engine, row.setup.precision, row.setup.device) == ("onnxruntime", "fp32", "cpu")
    assert (row.setup.batch_size, row.setup.workers) == (3, 1)
    figures = row.figures
    assert figures is not None
    for rate in (figures.engine, figures.end_to_end):
        assert 0 < rate.min <= rate.median <= rate.max
    assert figures.end_to_end.min / figures.engine.max <= figures.ratio <= figures.end_to_end.max / figures.engine.min
    assert 0 < figures.latency_p50_ms <= figures.latency_p95_ms
    assert 50 < figures.peak_memory_mib < 1000


@pytest.mark.slow
def test_pictures_are_not_downloaded(settings: Settings) -> None:
    (row,) = benchmark(
        BenchmarkPlan(("bundled",), batch_sizes=(1,), images=("http://127.0.0.1:9/a.jpg",), **QUICK), settings
    )
    assert row.error is not None
    assert "http://127.0.0.1:9/a.jpg" in row.error.message


@pytest.mark.slow
def test_an_unreadable_picture_is_an_error(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("no picture")
    (row,) = benchmark(
        BenchmarkPlan(("bundled",), batch_sizes=(1,), images=(str(tmp_path / "x.jpg"),), **QUICK), settings
    )
    assert row.error is not None
    assert row.error.exit_code is ExitCode.USAGE
    assert str(tmp_path / "x.jpg") in row.error.message


def test_a_crash_is_a_row_with_an_error(
    settings: Settings, coffee: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os; os.kill(os.getpid(), 11)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(benchmark.__code__.co_filename).parents[2]}")
    (row,) = benchmark(BenchmarkPlan(("bundled",), images=(str(coffee),), **QUICK), settings)
    assert row.error is not None
    assert row.error.message == "its process was killed by SIGSEGV"


def test_models_and_weights_that_cannot_be_used(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown"):
        benchmark(BenchmarkPlan(("cafformer_s18",)), settings)
    with pytest.raises(ModelError, match="offline"):
        benchmark(BenchmarkPlan(("caformer_s18",), images=("x.jpg",)), settings)
    for plan in (
        BenchmarkPlan(("bundled", "caformer_s18"), weights=tmp_path / "x.pth"),
        BenchmarkPlan(("bundled",), weights=tmp_path / "x.pth", random_weights=True),
    ):
        with pytest.raises(UsageError, match="weights=.* exclude each other"):
            benchmark(plan, settings)


@pytest.mark.slow
def test_random_weights_are_used_and_leave_nothing_behind(
    settings: Settings, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Case] = []

    def prepare(variant: Variant, weights: Path, own: Settings, _: object) -> None:
        assert load_checkpoint(weights, variant).num_classes == 200
        assert own.cache_dir.parent == weights.parent

    monkeypatch.setattr(task, "ensure_artifact", prepare)
    monkeypatch.setattr(task, "_measure", lambda cases, *_: seen.extend(cases) or [])
    assert benchmark(BenchmarkPlan(("bundled",), random_weights=True), settings) == []
    (case,) = seen
    assert case.weights is not None
    assert len(case.images) == 60
    assert Path(case.images[0]).parents[1] == Path(case.cache_dir or "").parent == Path(case.weights).parent
    assert not Path(case.weights).parent.exists()
    assert not list(own_cache.iterdir())


def test_a_rate_is_the_median_of_the_rounds() -> None:
    assert Rate.summarize([3.0, 1.0, 8.0]) == Rate(median=3.0, min=1.0, max=8.0)


def test_a_full_disk(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(task, "write_jpegs", full)
    with pytest.raises(OutputError, match="cannot write temporary files: No space left") as caught:
        benchmark(BenchmarkPlan(("bundled",), **QUICK), settings)
    assert caught.value.hint == "use a folder with more space: TMPDIR=DIR"

    def broken(*_: object) -> None:
        raise OSError("libnope.so.1: cannot open shared object file")

    monkeypatch.setattr(task, "write_jpegs", broken)
    with pytest.raises(OSError, match=r"libnope\.so\.1"):
        benchmark(BenchmarkPlan(("bundled",), **QUICK), settings)


def test_the_default_cache_is_left_to_the_process_to_find(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings("bundled", None, debug=False)
    monkeypatch.setattr(Settings, "cache_dir", None)  # of a user without a home; the bundled model needs none
    variant = find_variant("bundled")
    (case,) = task._iter_cases(BenchmarkPlan((variant.name,), **QUICK), [variant], {variant.name: None}, (), settings)
    assert case.cache_dir is None


@pytest.mark.parametrize("options", [{"device": "foo"}, {"threads": 5000}])
def test_options_are_checked_before_anything_is_generated(options: dict[str, Any], settings: Settings) -> None:
    notes: list[object] = []
    with pytest.raises(UsageError):
        benchmark(BenchmarkPlan(("bundled",), **options, **QUICK), settings, notes.append)
    assert notes == []
