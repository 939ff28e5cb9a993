"""The predictor: right answers on a real photo, stable runs, and rows for what fails."""

import dataclasses
import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from PIL import Image

import mfcli
from conftest import CHECKOUT, Ran
from deterministic import picture
from mfcli.errors import EngineError, FailureCode, MfError, ModelError, PictureError, UsageError
from mfcli.inference.engines.base import EngineName, Precision
from mfcli.inference.engines.torch import TorchEngine
from mfcli.inference.predictor import Predictor
from mfcli.inference.preparation import PreparedPicture
from mfcli.inputs.pictures import Picture
from mfcli.inputs.source import Source
from mfcli.models.concepts import HeadConcepts
from mfcli.results import Failure


def test_a_real_photo_is_named(coffee: Path) -> None:
    result = mfcli.load_predictor().predict(coffee)
    best = result.predictions[0]
    assert (best.rank, best.wnid, best.label) == (1, "n07920052", "espresso")
    assert best.prob > 0.5
    assert (result.width, result.height, result.status) == (600, 400, "ok")


@pytest.mark.parametrize(
    ("file", "label"), [("orange.jpg", "orange"), ("lemon.jpg", "lemon"), ("espresso.jpg", "espresso")]
)
def test_the_examples_are_named(file: str, label: str) -> None:
    path = CHECKOUT / "examples" / file
    assert mfcli.load_predictor().predict(path).predictions[0].label == label


def test_an_artifact_with_too_few_labels_is_damaged(coffee: Path) -> None:
    predictor = mfcli.load_predictor()
    artifact = dataclasses.replace(predictor.artifact, labels=predictor.artifact.labels[:150])
    few = Predictor(artifact, predictor.engine)
    with pytest.raises(ModelError, match="is damaged: it has 150 labels for 200 classes"):
        few.predict(coffee)


def test_probabilities_are_a_softmax_in_order(coffee: Path) -> None:
    predictions = mfcli.load_predictor(top_k=200).predict(coffee).predictions
    probs = [p.prob for p in predictions]
    assert probs == sorted(probs, reverse=True)
    assert math.isclose(sum(probs), 1, rel_tol=1e-12)
    assert [p.rank for p in predictions] == list(range(1, 201))
    assert {p.class_index for p in predictions} == set(range(200))


def test_both_engines_agree(coffee: Path) -> None:
    found = [mfcli.load_predictor(engine=engine).predict(coffee) for engine in ("onnxruntime", "torch")]
    assert [p.class_index for p in found[0].predictions] == [p.class_index for p in found[1].predictions]
    for a, b in zip(found[0].predictions, found[1].predictions, strict=True):
        assert a.prob == pytest.approx(b.prob, abs=1e-5)


def test_no_picture_is_too_large_where_memory_is_short(coffee: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    predictor = mfcli.load_predictor(isolate=False)
    monkeypatch.setattr("mfcli.inference.loading.decode", fail)
    for workers in (0, 3):  # an ordinary picture
        with pytest.raises(EngineError, match=f"too little memory to decode {coffee}"):
            list(predictor.stream([coffee], workers=workers))
    monkeypatch.setattr("mfcli.inference.loading._ORDINARY_PIXELS", 100)
    for workers in (0, 3):
        (result,) = predictor.stream([coffee], workers=workers)
        assert result.error == Failure(FailureCode.TOO_LARGE, "does not fit into memory")
    monkeypatch.setattr("mfcli.inference.loading.has_free_memory", lambda _: False)
    with pytest.raises(EngineError, match="too little memory"):
        predictor.predict(coffee)


def test_no_picture_is_damaged_where_memory_is_short(coffee: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PictureError(FailureCode.DECODE, "broken data stream")  # what libjpeg says as well without memory

    predictor = mfcli.load_predictor(isolate=False)
    monkeypatch.setattr("mfcli.inference.loading.decode", fail)
    for is_limited, is_free in ((False, False), (True, True)):
        monkeypatch.setattr("mfcli.inference.loading.is_memory_limited", lambda: is_limited)  # noqa: B023
        monkeypatch.setattr("mfcli.inference.loading.has_free_memory", lambda _: is_free)  # noqa: B023
        (result,) = predictor.stream([coffee], workers=2)
        assert result.error == Failure(FailureCode.DECODE, "broken data stream")
    monkeypatch.setattr("mfcli.inference.loading.has_free_memory", lambda _: False)
    with pytest.raises(EngineError, match="too little memory"):
        list(predictor.stream([coffee], workers=2))


@pytest.mark.parametrize("start", [b"abcd", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_needs_no_memory(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfcli.inference.loading.is_memory_limited", lambda: True)
    monkeypatch.setattr("mfcli.inference.loading.has_free_memory", lambda size_bytes: size_bytes < 2**20)
    result = mfcli.load_predictor(isolate=False).predict(start)
    assert result.error is not None
    assert result.error.code in (FailureCode.UNSUPPORTED, FailureCode.DECODE, FailureCode.TRUNCATED)


@pytest.mark.parametrize(
    ("precision", "message", "hint"),
    [
        (Precision.FP16, "overflows fp16", "precision=bf16, or precision=fp32"),
        (Precision.FP32, "its artifact may be damaged", "install it again"),
    ],
)
def test_nan_logits_are_an_error(precision: Precision, message: str, hint: str, coffee: Path) -> None:
    class Overflowing:
        name, streams, batch_size, device = EngineName.TORCH, 1, 1, "cuda:0"

        def compute(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
            return (np.full((len(batch), 200), np.nan, np.float32),)

    engine = Overflowing()
    engine.precision = precision  # type: ignore[attr-defined]
    predictor = Predictor(mfcli.load_predictor().artifact, engine)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=message) as caught:
        predictor.predict(coffee)
    assert str(caught.value.hint).startswith(hint)


def only_pictures(most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the engines compute at most so many pictures at once; return how many they have computed each time."""
    computed: list[int] = []
    run, forward = InferenceSession.run, TorchEngine._forward

    def limited_run(session: InferenceSession, outputs: list[str], inputs: dict[str, NDArray[np.float32]]) -> object:
        if len(inputs["input"]) > most:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
        computed.append(len(inputs["input"]))
        return run(session, outputs, inputs)

    def limited_forward(engine: TorchEngine, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        computed.append(len(batch))
        return forward(engine, batch)

    monkeypatch.setattr(InferenceSession, "run", limited_run)
    monkeypatch.setattr(TorchEngine, "_forward", limited_forward)
    return computed


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_batches_are_halved_where_memory_is_short(
    engine: str, tmp_path: Path, mf: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(tmp_path / f"{number}.png") for number in range(40)]
    for name in names:
        picture(48, 48, name=name).save(name)
    options = ("predict", *names, "--format", "csv", "-k", "1", "--engine", engine, "--threads", "1")
    expected = mf(*options, "--batch-size", "4")
    monkeypatch.setattr("mfcli.inference.pipeline._MAX_WAIT_S", 60.0)  # a busy machine makes no batches of one
    computed = only_pictures(1, monkeypatch)
    ran = mf(*options, "--batch-size", "16")
    answers = [[line.split(",")[:7] for line in one.out.splitlines()] for one in (ran, expected)]
    assert answers[0] == answers[1]  # torch's probabilities depend on the batch, in the last digits
    assert computed == [1] * 40
    assert ran.err.count("ran out of memory, so batches were halved to 1 picture") == 1
    assert "--batch-size 1" in ran.err
    assert "halved" not in expected.err


@pytest.mark.parametrize(("most", "expected"), [(16, [16]), (5, [4, 4, 4, 4]), (3, [2] * 8)])
def test_the_largest_half_that_fits_is_kept(
    most: int, expected: list[int], coffee: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = mfcli.load_predictor(threads=1, isolate=False)
    prepared = predictor.prepare(Source(str(coffee)))
    assert isinstance(prepared, PreparedPicture)
    computed = only_pictures(most, monkeypatch)
    assert len(predictor._compute([prepared] * 16)) == 16
    assert computed == expected
    assert len(predictor._compute([prepared])) == 1
    assert (predictor.memory_note is None) == (most == 16)


def test_memory_for_no_picture_is_an_error(coffee: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_pictures(0, monkeypatch)
    with pytest.raises(EngineError, match="too little memory to classify"):
        list(mfcli.load_predictor().stream([coffee] * 3))


def test_equal_logits_rank_in_head_order(coffee: Path, tmp_path: Path) -> None:
    model = mfcli.create_model("bundled", num_classes=6)
    torch.nn.init.constant_(model.get_parameter("head.weight"), 1e-30)  # its share of the logits is lost in rounding
    model.head.bias.data = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    torch.save(model.state_dict(), tmp_path / "equal.pth")
    predictions = mfcli.load_predictor("bundled", weights=tmp_path / "equal.pth", top_k=6).predict(coffee).predictions
    assert [p.class_index for p in predictions] == [1, 3, 5, 0, 2, 4]
    assert [p.label for p in predictions] == [f"class_{i}" for i in (1, 3, 5, 0, 2, 4)]


def test_a_failure_is_a_row_in_place(coffee: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    sources = [Source(str(p)) for p in (coffee, tmp_path / "text.jpg", tmp_path / "none.jpg", coffee)]
    results = list(mfcli.load_predictor().stream(sources))
    assert [r.status for r in results] == ["ok", "error", "error", "ok"]
    assert [r.error.code for r in results if r.error] == [FailureCode.UNSUPPORTED, FailureCode.NOT_FOUND]
    assert results[0].predictions == results[3].predictions
    assert results[1].predictions == ()


def test_one_picture_gives_one_result_and_many_give_a_list(coffee: Path) -> None:
    predictor = mfcli.load_predictor()
    with Image.open(coffee) as image:
        pictures: list[Picture] = [
            str(coffee),
            coffee,
            coffee.read_bytes(),
            image,
            np.asarray(image),
            Source(str(coffee)),
        ]
        results = predictor.predict(pictures)
        one_by_one = [predictor.predict(picture) for picture in pictures]
    assert results == one_by_one == predictor.predict(iter(pictures[:1])) + results[1:]
    assert len({result.predictions for result in results}) == 1
    assert {(result.width, result.height, result.label) for result in results} == {(600, 400, "espresso")}
    assert predictor.predict([]) == predictor.predict(()) == []


def test_nothing_is_computed_where_one_is_no_picture(coffee: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = mfcli.load_predictor()
    monkeypatch.setattr(predictor, "_compute", pytest.fail)
    with pytest.raises(TypeError, match=r"pictures\[1\] is None"):
        predictor.predict([coffee, None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="picture is an array of shape"):
        predictor.predict(np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(TypeError, match="stream takes an iterable of pictures, not PosixPath; predict takes one"):
        predictor.stream(coffee)  # type: ignore[arg-type]


def test_a_stream_is_lazy_and_raises_in_place(coffee: Path) -> None:
    seen = 0

    def endless() -> Iterator[Path | None]:
        nonlocal seen
        while seen < 1000:
            seen += 1
            yield None if seen == 30 else coffee

    results = mfcli.load_predictor().stream(endless(), batch_size=2, workers=1)  # type: ignore[arg-type]
    assert next(results).label == "espresso"
    assert seen < 30
    assert [result.status for result in itertools.islice(results, 28)] == ["ok"] * 28
    with pytest.raises(TypeError, match="picture is None"):
        next(results)


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_threads_may_share_a_predictor(engine: str) -> None:
    predictor = mfcli.load_predictor(engine=engine)
    pictures = [CHECKOUT / "examples" / f"{name}.jpg" for name in ("orange", "lemon", "espresso")] * 4
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(predictor.predict, pictures)) == list(map(predictor.predict, pictures))


def test_a_predictor_is_not_pickled() -> None:
    predictor = mfcli.load_predictor()
    assert repr(predictor) == "<Predictor convformer_t8_64: 200 classes, onnxruntime, fp32, cpu>"
    with pytest.raises(TypeError, match="cannot be pickled; load one in each process"):
        pickle.dumps(predictor)


def test_the_environment_keeps_pictures_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MF_OFFLINE", "1")
    result = mfcli.load_predictor().predict("http://127.0.0.1:9/a.jpg")
    assert result.error is not None
    assert result.error.message.startswith("not fetched while offline")


def test_a_strip_has_its_size_and_an_error(tmp_path: Path) -> None:
    from deterministic import picture

    picture(1, 50_000).save(tmp_path / "strip.png")
    result = mfcli.load_predictor().predict(tmp_path / "strip.png")
    assert result.error is not None
    assert result.error.code is FailureCode.TOO_LARGE
    assert (result.width, result.height) == (1, 50_000)


@pytest.mark.parametrize(
    ("decode", "overrides", "is_spare"),
    [("exact", {}, True), ("scaled", {}, False), ("exact", {"crop_pct": 0.1}, False)],
)
def test_a_large_jpeg_is_scaled_down_to_twice_the_size_that_is_needed(
    decode: str, overrides: dict[str, float], is_spare: bool, coffee: Path, tmp_path: Path
) -> None:
    with Image.open(coffee) as photo:
        photo.resize((1800, 1200), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=90)
    predictor = mfcli.load_predictor(decode=decode, **overrides)  # type: ignore[arg-type]
    result = predictor.predict(tmp_path / "large.jpg")
    assert (result.width, result.height) == (1800, 1200)
    assert result.label == "espresso" or overrides
    assert (predictor.spare_decoding_s > 0) is is_spare


@pytest.mark.slow
def test_a_run_is_named_by_what_shapes_its_answers(small_weights: Path) -> None:
    def run(**settings: object) -> str:
        return mfcli.load_predictor(**settings).settings.run  # type: ignore[arg-type]

    base = run()
    assert base == run() == run(model="convformer_t8_64") == run(max_pixels=10)
    assert len(base) == 16
    others = [
        run(top_k=3),
        run(exif=False),
        run(decode="scaled"),
        run(confidence=0.9),
        run(engine="torch"),
        run(labels=map(str, range(200))),
        run(model="bundled", weights=small_weights),
    ]
    assert len({base, *others}) == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 0}, "top_k=0 is less than 1"),
        ({"top_k": 201}, "top_k=201 is not between 1 and the 200 classes of convformer_t8_64"),
        ({"labels": ()}, "0 labels for the 200 classes of convformer_t8_64"),
        ({"labels": ["a"]}, "1 label for the 200 classes of convformer_t8_64"),
        ({"confidence": 0.49}, "confidence=0.49 is not between 0.5 and 1"),
        ({"confidence": float("nan"), "model": "caformer_s18"}, "confidence=nan is not between 0.5 and 1"),
        ({"max_error": "10%"}, "max_error='10%' is not between 0 and 1"),
        ({"engine": "abacus"}, "unknown engine 'abacus'"),
        ({"decode": "half"}, "unknown decode 'half'"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        mfcli.load_predictor(**settings)  # type: ignore[arg-type]
    assert caught.value.message == message


@pytest.mark.parametrize("file", ["orange.jpg", "espresso.jpg"])
def test_the_concept_is_that_of_the_whole_distribution(file: str) -> None:
    whole = mfcli.load_predictor(top_k=200)
    predictions = whole.predict(CHECKOUT / "examples" / file).predictions
    probs = np.zeros(200)
    probs[[p.class_index for p in predictions]] = [p.prob for p in predictions]
    for confidence in (0.5, 0.9, 0.99):
        expected = HeadConcepts(whole.labels).name(probs, confidence)
        predictor = mfcli.load_predictor(top_k=1, confidence=confidence)
        assert predictor.predict(CHECKOUT / "examples" / file).concept == expected


@pytest.mark.parametrize("settings", [{"confidence": None}, {"labels": [f"{i}" for i in range(200)]}])
def test_there_is_no_concept(settings: dict[str, object], coffee: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfcli.models.concepts.load_hierarchy", None)  # nothing is loaded
    assert mfcli.load_predictor(**settings).predict(coffee).concept is None  # type: ignore[arg-type]


def test_the_environment_chooses_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MF_MODEL", "caformer_s36")
    monkeypatch.setenv("MF_OFFLINE", "1")
    with pytest.raises(MfError, match="weights of caformer_s36 are not on this machine"):
        mfcli.load_predictor()
    assert mfcli.load_predictor("bundled").run_info.model == "convformer_t8_64"
    monkeypatch.setenv("MF_MODEL", "caformer_s")
    with pytest.raises(MfError, match=r"unknown model 'caformer_s' \(named by MF_MODEL\)"):
        mfcli.load_predictor()


def test_trial_photos(trial_photos: Path) -> None:
    import csv

    with (trial_photos / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["in_tiny_imagenet_200"] == "yes"]
    results = mfcli.load_predictor().stream(Source(str(trial_photos / row["path"])) for row in rows)
    first = [result.predictions[0].wnid == row["wnid"] for result, row in zip(results, rows, strict=True)]
    assert len(first) == 24
    assert sum(first) >= 13


def test_embed_gives_predictions_and_features(coffee: Path) -> None:
    predictor = mfcli.load_predictor("bundled", threads=1)
    plain = predictor.predict(coffee)
    embedded = predictor.embed(coffee)
    many = predictor.embed([Image.open(coffee), b"no picture", coffee])
    assert plain.features is None
    assert embedded == plain
    assert embedded.features is not None
    assert (embedded.features.shape, embedded.features.dtype.name) == ((320,), "float32")
    assert [row.features is None for row in many] == [False, True, False]
    for row in (many[0], many[2], mfcli.load_predictor("bundled", threads=1, features=True).predict(coffee)):
        assert np.array_equal(row.features, embedded.features)  # type: ignore[arg-type]
