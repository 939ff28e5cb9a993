"""mf doctor: findings, secrets that stay out of them, and broken installations."""

import subprocess
import tomllib
from pathlib import Path

import pytest

from mfcli.inference.engines.base import EngineName
from mfcli.settings import Settings
from mfcli.tasks import doctor as task
from mfcli.tasks.doctor import FindingStatus, Group, doctor, is_working, redact_credentials


@pytest.fixture
def only_the_default_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the other engines: torch takes seconds."""
    monkeypatch.setattr(task, "find_spec", lambda name: name == "onnxruntime" or None)


def fake_engine(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    (folder / "onnxruntime.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(task.__file__).parents[2]}")


@pytest.mark.usefixtures("only_the_default_engine")
def test_a_working_installation() -> None:
    findings = list(doctor(Settings.from_environ()))
    assert is_working(findings)
    found = {(f.group, f.name): f for f in findings}
    assert len(found) == len(findings)
    assert {f.group for f in findings} >= set(Group) - {Group.EXTRAS}
    engine = found[Group.ENGINES, "onnxruntime"]
    assert engine.value["difference"] == 0.0
    assert engine.value["picture_ms"] > 0
    torch = found[Group.ENGINES, "torch"]
    assert (torch.status, torch.hint) == (FindingStatus.FACT, "pip install torch timm")
    assert torch.value.startswith("not installed, needed for ")
    assert found[Group.MODELS, "convformer_t8_64"].value["artifact_bytes"] > 1e6
    assert found[Group.MODELS, "bundled"].status is FindingStatus.OK
    assert not [f for f in findings if "'mfcli" in (f.hint or "")]  # a package of that name on an index is another's


@pytest.mark.usefixtures("only_the_default_engine")
def test_a_damaged_bundled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "bundled_is_intact", lambda _: False)
    findings = list(doctor(Settings.from_environ()))
    assert not is_working(findings)
    (model,) = [f for f in findings if f.name == "bundled"]
    assert (model.status, model.hint) == (
        FindingStatus.FAILED,
        "install it again, in the checkout: pip install --force-reinstall --no-deps .",
    )


@pytest.mark.usefixtures("only_the_default_engine")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ImportError('libfoo.so is missing')", "onnxruntime cannot be loaded: libfoo.so is missing"),
        ("import os; os.kill(os.getpid(), 4)", "its process crashed with SIGILL"),
        ("import os; os._exit(3)", "its process ended with exit code 3"),
    ],
)
def test_a_broken_engine(code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_engine(tmp_path, monkeypatch, code)
    findings = list(doctor(Settings.from_environ()))
    assert not is_working(findings)
    (engine,) = [f for f in findings if f.group is Group.ENGINES and f.name == "onnxruntime"]
    assert (engine.status, engine.value) == (FindingStatus.FAILED, message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("os.kill(os.getpid(), 11)", "its process crashed with SIGSEGV"),
        ("time.sleep(60)", "no answer within 4 s"),
    ],
)
def test_a_crash_on_one_device_keeps_the_reports_of_the_others(
    end: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"""
import os, time
import mfcli.tasks.doctor_worker as worker

def probe(name, device):
    if device == "cuda:1":
        {end}
    return {{"device": device, "logits": [0.0]}}

worker._try_device = probe
worker._list_accelerators = lambda: {{"cuda:0": "a GPU", "cuda:1": "another"}}
worker.probe("torch")
"""
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **how: run([*command[:-1], program], **how))
    monkeypatch.setattr(task, "_TIMEOUT_S", 4)
    assert task._run_probe(EngineName.TORCH) == [
        {"device": "cpu", "logits": [0.0]},
        {"device": "cuda:0", "logits": [0.0], "is": "a GPU"},
        {"device": "cuda:1", "is": "another", "error": message},
    ]


def test_an_incomplete_line_is_no_report() -> None:
    assert task._parse_reports(b'{"trying":{"device":"x"}}\n{"log', "crashed") == [{"device": "x", "error": "crashed"}]
    assert task._parse_reports(b'{"logits":[0]}\n', None) == [{"logits": [0]}]


def test_a_deleted_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    (tmp_path / "x").rmdir()
    found = {f.name: f for f in task._check_cache(Settings("bundled", Path("rel"), debug=False))}
    assert found["writable"].status is FindingStatus.FAILED


def test_logits_that_differ_are_a_failure() -> None:
    reference = [0.0, 1.0, 2.0]
    assert task._compare_logits("x", {}, [0.0, 1.0, 2.001], reference).status is FindingStatus.OK
    assert task._compare_logits("x", {}, [0.0, 1.0, 2.1], reference).status is FindingStatus.FAILED
    assert task._compare_logits("x", {}, [0.0, 1.0, float("nan")], reference).status is FindingStatus.FAILED
    nan = task._compare_logits("x", {}, [float("nan")] * 3, [float("nan")] * 3)
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
def test_addresses_lose_their_credentials(address: str, shown: str) -> None:
    assert redact_credentials(address) == shown


@pytest.mark.usefixtures("only_the_default_engine")
def test_findings_hold_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy:3128")
    monkeypatch.setenv("MF_ENDPOINT", "https://me:secret@mirror.example/?token=secret")
    findings = list(task._check_network(Settings.from_environ()))
    assert {f.value for f in findings} >= {"http://proxy:3128", "https://mirror.example/"}
    assert "secret" not in str(findings)


def test_extras_for_developers_are_no_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    required = [f"package>=1; extra == '{extra}'" for extra in ("fuzz", "heif", "release", "test")]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: required)
    assert [finding.name for finding in task._check_extras()] == ["heif"]


USED = {
    "heif": "pip install pillow-heif",
    "openvino": "pip install openvino",
    "ray": "pip install 'ray[data]'",
    "scale": "pip install pyarrow",
    "show": "pip install textual-image",
    "stores": "pip install obstore botocore",
}


def test_each_extra_for_users_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = [f"{package}; extra == '{name}'" for name, packages in extras.items() for package in packages]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: required)
    monkeypatch.setattr(task, "_find_version", lambda _: None)
    assert {finding.name: finding.hint for finding in task._check_extras()} == USED


def test_a_cache_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MF_CACHE_DIR", str(tmp_path / "file" / "cache"))
    found = {f.name: f for f in task._check_cache(Settings.from_environ())}
    assert (found["writable"].status, found["writable"].hint) == (
        FindingStatus.FAILED,
        "name another folder: MF_CACHE_DIR=DIR",
    )


def test_the_cache_is_measured_and_not_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MF_CACHE_DIR", str(tmp_path / "cache"))
    assert {f.name: f.value for f in task._check_cache(Settings.from_environ())}["size_mib"] == 0
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "x").write_bytes(bytes(3 << 20))
    assert {f.name: f.value for f in task._check_cache(Settings.from_environ())}["size_mib"] == 3


def test_features_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "_read_cpuinfo", lambda: {"model name": "A", "flags": "fpu avx2 amx_bf16 vmx"})
    found = {f.name: f.value for f in task._describe_machine()}
    assert (found["processor"], found["features"]) == ("A", ["avx2", "amx_bf16"])
    monkeypatch.setattr(task, "_read_cpuinfo", dict)
    assert "features" not in {f.name for f in task._describe_machine()}
