"""mf doctor: what it finds, what it keeps to itself, and what it says of a broken installation."""

import subprocess
from pathlib import Path

import pytest

from mfcli.inference.engines.base import EngineName
from mfcli.settings import Settings
from mfcli.tasks import doctor as task
from mfcli.tasks.doctor import FindingStatus, Group, default_works, doctor, without_credentials


@pytest.fixture
def only_the_default_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the others out: torch takes seconds."""
    monkeypatch.setattr(task, "find_spec", lambda name: name == "onnxruntime" or None)


def fake_engine(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    (folder / "onnxruntime.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(task.__file__).parents[2]}")


@pytest.mark.usefixtures("only_the_default_engine")
def test_a_good_installation() -> None:
    findings = list(doctor(Settings.from_environ()))
    assert default_works(findings)
    found = {(f.group, f.name): f for f in findings}
    assert len(found) == len(findings)
    assert {f.group for f in findings} >= set(Group) - {Group.EXTRAS}
    engine = found[Group.ENGINES, "onnxruntime"]
    assert engine.value["difference"] == 0.0
    assert engine.value["picture_ms"] > 0
    assert found[Group.ENGINES, "torch"].status is FindingStatus.ABSENT
    assert found[Group.MODELS, "convformer_t8_64"].value["artifact_bytes"] > 1e6
    assert found[Group.MODELS, "bundled"].status is FindingStatus.OK
    assert not [f for f in findings if "'mfcli" in (f.hint or "")]  # a package of that name on an index is another's


@pytest.mark.usefixtures("only_the_default_engine")
def test_a_damaged_model_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "bundled_is_intact", lambda _: False)
    findings = list(doctor(Settings.from_environ()))
    assert not default_works(findings)
    (model,) = [f for f in findings if f.name == "bundled"]
    assert (model.status, model.hint) == (
        FindingStatus.FAILED,
        "install it again, in the checkout: pip install --force-reinstall --no-deps .",
    )


@pytest.mark.usefixtures("only_the_default_engine")
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ImportError('libfoo.so is missing')", "onnxruntime cannot be loaded: libfoo.so is missing"),
        ("import os; os.kill(os.getpid(), 4)", "its process crashed with SIGILL"),
        ("import os; os._exit(3)", "its process ended with exit code 3"),
    ],
)
def test_an_engine_that_does_not_work(code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_engine(tmp_path, monkeypatch, code)
    findings = list(doctor(Settings.from_environ()))
    assert not default_works(findings)
    (engine,) = [f for f in findings if f.group is Group.ENGINES and f.name == "onnxruntime"]
    assert (engine.status, engine.value) == (FindingStatus.FAILED, said)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("os.kill(os.getpid(), 11)", "its process crashed with SIGSEGV"),
        ("time.sleep(60)", "gave no answer within 15 s"),
    ],
)
def test_a_device_that_ends_the_process_takes_no_other_one_along(
    end: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"""
import os, time
import mfcli.tasks.doctor as doctor

def probe(name, device):
    if device == "cuda:1":
        {end}
    return {{"device": device, "logits": [0.0]}}

doctor._probe = probe
doctor._accelerators = lambda: {{"cuda:0": "a GPU", "cuda:1": "another"}}
doctor.probe("torch")
"""
    run = subprocess.run
    monkeypatch.setattr(task.subprocess, "run", lambda command, **how: run([*command[:-1], program], **how))
    monkeypatch.setattr(task, "_TIMEOUT_S", 15)
    assert task._tried(EngineName.TORCH) == [
        {"device": "cpu", "logits": [0.0]},
        {"device": "cuda:0", "logits": [0.0], "is": "a GPU"},
        {"device": "cuda:1", "is": "another", "error": said},
    ]


def test_half_a_line_is_no_answer() -> None:
    assert task._answers(b'{"trying":{"device":"x"}}\n{"log', "crashed") == [{"device": "x", "error": "crashed"}]
    assert task._answers(b'{"logits":[0]}\n', None) == [{"logits": [0]}]


def test_a_working_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    (tmp_path / "x").rmdir()
    found = {f.name: f for f in task._cache(Settings("bundled", Path("rel"), debug=False))}
    assert found["writable"].status is FindingStatus.FAILED


def test_an_answer_that_differs_is_a_failure() -> None:
    reference = [0.0, 1.0, 2.0]
    assert task._judged("x", {}, [0.0, 1.0, 2.001], reference).status is FindingStatus.OK
    assert task._judged("x", {}, [0.0, 1.0, 2.1], reference).status is FindingStatus.FAILED
    assert task._judged("x", {}, [0.0, 1.0, float("nan")], reference).status is FindingStatus.FAILED
    nan = task._judged("x", {}, [float("nan")] * 3, [float("nan")] * 3)
    assert (nan.status, "as installed" in str(nan.hint)) == (FindingStatus.FAILED, True)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:secret@proxy:3128", "http://proxy:3128"),
        ("me:secret@proxy:3128", "proxy:3128"),
        ("http://me:sec@ret@proxy:3128/", "http://proxy:3128/"),
        ("me:s://ecret@proxy", "proxy"),
        ("https://mirror.example/x?token=secret", "https://mirror.example/x"),
        ("proxy:3128", "proxy:3128"),
    ],
)
def test_no_address_keeps_its_password(address: str, shown: str) -> None:
    assert without_credentials(address) == shown


@pytest.mark.usefixtures("only_the_default_engine")
def test_no_secret_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy:3128")
    monkeypatch.setenv("MF_ENDPOINT", "https://me:secret@mirror.example/?token=secret")
    findings = list(task._network(Settings.from_environ()))
    assert {f.value for f in findings} >= {"http://proxy:3128", "https://mirror.example/"}
    assert "secret" not in str(findings)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MF_CACHE_DIR", str(tmp_path / "file" / "cache"))
    found = {f.name: f for f in task._cache(Settings.from_environ())}
    assert (found["writable"].status, found["writable"].hint) == (
        FindingStatus.FAILED,
        "name another folder: MF_CACHE_DIR=DIR",
    )


def test_the_cache_is_not_made_but_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MF_CACHE_DIR", str(tmp_path / "cache"))
    assert {f.name: f.value for f in task._cache(Settings.from_environ())}["size_mib"] == 0
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "x").write_bytes(bytes(3 << 20))
    assert {f.name: f.value for f in task._cache(Settings.from_environ())}["size_mib"] == 3


def test_features_are_those_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "_cpuinfo", lambda: {"model name": "A", "flags": "fpu avx2 amx_bf16 vmx"})
    found = {f.name: f.value for f in task._machine()}
    assert (found["processor"], found["features"]) == ("A", ["avx2", "amx_bf16"])
    monkeypatch.setattr(task, "_cpuinfo", dict)
    assert "features" not in {f.name for f in task._machine()}
