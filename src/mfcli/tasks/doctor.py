"""Find out what is installed and what really works here, without a network.

Each engine is tried in a process of its own, because a broken one may not raise but crash, and because torch takes
seconds to import. What is found comes one by one, so that it can be shown at once.
"""

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mfcli.artifact.ensure import ensure_artifact
from mfcli.artifact.file import bundled_is_intact
from mfcli.errors import MfError
from mfcli.files import exists, is_folder
from mfcli.hub.bundled import REINSTALL, bundled_file
from mfcli.hub.cache import list_artifacts, list_checkpoints
from mfcli.inference.engines import load_engine
from mfcli.inference.engines.base import EngineName, EngineOptions
from mfcli.models.registry import default_variant, find_variant
from mfcli.settings import BUNDLED_ALIAS, Settings, usable_cores
from mfcli.synthetic import picture
from mfcli.version import __version__

DEFAULT_ENGINE = EngineName.ONNXRUNTIME
"""What `--engine auto` stands for, and what the others are compared with."""

MAX_DIFFERENCE = 0.01
"""Largest difference of an engine's logits to the default's, as a share of their standard deviation."""

_TIMEOUT_S = 180.0

_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "i8mm", "bf16", "sve")
"""What makes the products of a network fast, by the names of /proc/cpuinfo."""


class Group(StrEnum):
    """What a finding is about."""

    PROGRAM = "program"
    MACHINE = "machine"
    ENGINES = "engines"
    EXTRAS = "extras"
    CACHE = "cache"
    NETWORK = "network"
    MODELS = "models"


class FindingStatus(StrEnum):
    """How it is; FACT has nothing that could fail."""

    FACT = "fact"
    OK = "ok"
    ABSENT = "absent"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found out.

    Attributes:
        group: what it is about.
        name: what it is, with a unit as its suffix.
        status: how it is.
        value: plain values: a text, a number, a list, a dict, or None.
        hint: the next step where there is something to do.
    """

    group: Group
    name: str
    status: FindingStatus
    value: Any
    hint: str | None = None


def doctor(settings: Settings) -> Iterator[Finding]:
    """Yield what there is to know, the quick things first; nothing is raised for what does not work."""
    yield from _program()
    yield from _machine()
    yield from _cache(settings)
    yield from _network(settings)
    yield from _models(settings)
    yield from _extras()
    yield from _engines()


def default_works(findings: Sequence[Finding]) -> bool:
    """Return whether the model that ships with the package is whole and can be run by the default engine."""
    fine = {(f.group, f.name) for f in findings if f.status is FindingStatus.OK}
    return {(Group.MODELS, BUNDLED_ALIAS), (Group.ENGINES, DEFAULT_ENGINE.value)} <= fine


def _program() -> Iterator[Finding]:
    yield Finding(Group.PROGRAM, "mfcli", FindingStatus.FACT, __version__)
    yield Finding(Group.PROGRAM, "folder", FindingStatus.FACT, str(Path(__file__).parent.parent))
    yield Finding(Group.PROGRAM, "python", FindingStatus.FACT, f"{platform.python_version()} {sys.executable}")
    yield Finding(Group.PROGRAM, "platform", FindingStatus.FACT, platform.platform())


def _machine() -> Iterator[Finding]:
    described = _cpuinfo()
    name = described.get("model name") or platform.processor() or platform.machine()
    yield Finding(Group.MACHINE, "processor", FindingStatus.FACT, name)
    if flags := (described.get("flags") or described.get("Features") or "").split():
        yield Finding(Group.MACHINE, "features", FindingStatus.FACT, [name for name in _FEATURES if name in flags])
    yield Finding(Group.MACHINE, "usable_cores", FindingStatus.FACT, usable_cores())
    yield Finding(Group.MACHINE, "cores", FindingStatus.FACT, os.cpu_count())
    with contextlib.suppress(ValueError, OSError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield Finding(Group.MACHINE, "memory_mib", FindingStatus.FACT, total >> 20)
    with contextlib.suppress(ValueError, OSError):  # a control group's limit; elsewhere "max", or no such file
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        yield Finding(Group.MACHINE, "memory_limit_mib", FindingStatus.FACT, limit >> 20)


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; nothing where there is no such file."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _cache(settings: Settings) -> Iterator[Finding]:
    try:
        folder = settings.cache_dir
    except MfError as error:
        yield Finding(Group.CACHE, "folder", FindingStatus.FAILED, error.message, error.hint)
        return
    yield Finding(Group.CACHE, "folder", FindingStatus.FACT, str(folder))
    above: Sequence[Path] = ()
    with contextlib.suppress(OSError):  # the working folder may be gone
        above = folder.absolute().parents
    there = next((path for path in (folder, *above) if exists(path)), folder)
    writable = is_folder(there) and os.access(there, os.W_OK | os.X_OK)
    hint = None if writable else "name another folder: MF_CACHE_DIR=DIR"
    yield Finding(Group.CACHE, "writable", FindingStatus.OK if writable else FindingStatus.FAILED, writable, hint)
    yield Finding(Group.CACHE, "size_mib", FindingStatus.FACT, round(_size_bytes(folder) / 2**20, 1))
    with contextlib.suppress(OSError):
        yield Finding(Group.CACHE, "free_mib", FindingStatus.FACT, shutil.disk_usage(there).free >> 20)


def _size_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(parent) / name).lstat().st_size
    return total


def _network(settings: Settings, environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    yield Finding(Group.NETWORK, "offline", FindingStatus.FACT, settings.offline)
    endpoint = settings.endpoint and without_credentials(settings.endpoint)
    yield Finding(Group.NETWORK, "endpoint", FindingStatus.FACT, endpoint or "https://huggingface.co")
    for scheme, address in sorted(urllib.request.getproxies().items()):
        shown = address if scheme == "no" else without_credentials(address)
        yield Finding(Group.NETWORK, f"{scheme}_proxy", FindingStatus.FACT, shown)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if bundle := environ.get(name):
            there = exists(Path(bundle))
            hint = None if there else f"unset {name}, or let it name a file that is there"
            yield Finding(
                Group.NETWORK, name.lower(), FindingStatus.OK if there else FindingStatus.FAILED, bundle, hint
            )


def without_credentials(address: str) -> str:
    """Return an address without user, password and query; it may lack its scheme, as proxies' do."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", address)
    rest = address.removeprefix(scheme[0]) if scheme else address
    return (scheme[0] if scheme else "") + rest.rpartition("@")[2].partition("?")[0]


def _models(settings: Settings) -> Iterator[Finding]:
    try:
        default = default_variant(settings)
    except MfError as error:
        yield Finding(Group.MODELS, "default", FindingStatus.FAILED, error.message, error.hint)
    else:
        yield Finding(Group.MODELS, "default", FindingStatus.FACT, default.name)
    sizes: dict[str, dict[str, int]] = {}
    with contextlib.suppress(MfError, OSError):
        bundled = find_variant(BUNDLED_ALIAS).name
        _add(sizes, bundled, "artifact_bytes", bundled_file(f"{bundled}.onnx"))
    yield _bundled()
    with contextlib.suppress(MfError, OSError):
        for path in list_checkpoints(settings):
            _add(sizes, path.parent.name, "checkpoint_bytes", path)
        for name, path in list_artifacts(settings):
            _add(sizes, name, "artifact_bytes", path)
    for name, found in sorted(sizes.items()):
        yield Finding(Group.MODELS, name, FindingStatus.FACT, found)


def _bundled() -> Finding:
    try:
        good = bundled_is_intact(find_variant(BUNDLED_ALIAS))
    except MfError as error:
        return Finding(Group.MODELS, BUNDLED_ALIAS, FindingStatus.FAILED, error.message, error.hint)
    value = "as installed" if good else "its artifact was changed or is damaged"
    return Finding(
        Group.MODELS,
        BUNDLED_ALIAS,
        FindingStatus.OK if good else FindingStatus.FAILED,
        value,
        None if good else REINSTALL,
    )


def _add(sizes: dict[str, dict[str, int]], name: str, what: str, path: Path) -> None:
    counted = sizes.setdefault(name, {})
    counted[what] = counted.get(what, 0) + path.stat().st_size


def _extras() -> Iterator[Finding]:
    for extra, names in _required().items():
        versions = {name: version for name in names if (version := _version(name))}
        whole = len(versions) == len(names)
        hint = None if whole else f"pip install {' '.join(names)}"
        yield Finding(Group.EXTRAS, extra, FindingStatus.OK if whole else FindingStatus.ABSENT, versions or None, hint)


def _required() -> dict[str, list[str]]:
    """What each extra of the package asks for, by the package's own metadata; those for developers aside."""
    try:
        required = metadata.requires("metaformer-cli") or []
    except metadata.PackageNotFoundError:  # run from a folder that was never installed
        return {}
    wanted: dict[str, list[str]] = {}
    for requirement in required:
        match = re.match(r"([\w.-]+).*\bextra == ['\"]([\w-]+)['\"]", requirement)
        if match and match[2] not in ("bench", "dev", "docs", "test"):
            wanted.setdefault(match[2], []).append(match[1])
    return wanted


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _engines() -> Iterator[Finding]:
    reference: list[float] | None = None
    names = [DEFAULT_ENGINE, *(name for name in EngineName if name not in (EngineName.AUTO, DEFAULT_ENGINE))]
    for name in names:
        if find_spec(name.value) is None:  # an engine has the name of its package
            yield Finding(Group.ENGINES, name.value, FindingStatus.ABSENT, None, f"pip install {name.value}")
            continue
        for probe in _tried(name):
            logits = probe.pop("logits", None)
            if name is DEFAULT_ENGINE:
                reference = logits
            device = probe.get("device")
            shown = name.value if device in (None, "auto", "cpu") else f"{name.value} on {device}"
            yield _judged(shown, probe, logits, reference)


def _judged(name: str, probe: dict[str, Any], logits: list[float] | None, reference: list[float] | None) -> Finding:
    if logits is None:
        return Finding(Group.ENGINES, name, FindingStatus.FAILED, probe.pop("error"), probe.pop("hint", None))
    if reference is None:  # there is nothing to compare with
        return Finding(Group.ENGINES, name, FindingStatus.OK, probe)
    difference = float(np.abs(np.subtract(logits, reference)).max() / np.std(reference))
    probe["difference"] = float(f"{difference:.1e}") if np.isfinite(difference) else None
    good = difference <= MAX_DIFFERENCE  # false for what is no number
    hint = None
    if not np.isfinite(logits).all():
        hint = "it computes what is no number: see whether the bundled model is as installed"
    elif not np.isfinite(reference).all():
        hint = f"{DEFAULT_ENGINE} computes what is no number, there is nothing to compare with"
    elif not good:
        hint = f"its answers are not those of {DEFAULT_ENGINE}: use another --engine or --device"
    return Finding(Group.ENGINES, name, FindingStatus.OK if good else FindingStatus.FAILED, probe, hint)


def _tried(name: EngineName) -> list[dict[str, Any]]:
    """Try an engine in a process of its own: what it found on each device, or the error, as `probe` writes it."""
    program = f"from mfcli.tasks.doctor import probe; probe({name.value!r})"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return _answers(error.stdout or b"", f"gave no answer within {_TIMEOUT_S:g} s")
    code = done.returncode
    crash = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return _answers(done.stdout, f"its process {crash}" if code else None)


def _answers(lines: bytes, end: str | None) -> list[dict[str, Any]]:
    """What a probe found, and, where it ended badly, how, of the device that it was trying."""
    found: list[dict[str, Any]] = []
    trying: dict[str, Any] = {}
    for line in lines.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        answer = json.loads(line)
        if "trying" in answer:
            trying = answer["trying"]
        else:
            found.append(answer)
    if end:
        found.append({**trying, "error": end})
    return found


def probe(engine: str) -> None:
    """Let an engine classify a made-up picture with the bundled model; write JSON lines to stdout for each device.

    One, `trying`, says what comes next; the other one holds version, device, load_ms, picture_ms (the second call), and
    logits; or an error, and a hint.
    """
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    name = EngineName(engine)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    found = _probe(name, "cpu")
    say(found)
    if name is EngineName.TORCH and "error" not in found:
        for device, described in _accelerators().items():
            trying = {"device": device, "is": described}
            say({"trying": trying})
            say({**_probe(name, device), **trying})
    os._exit(0)  # some runtimes take long to be taken down


def _probe(name: EngineName, device: str) -> dict[str, Any]:
    settings = replace(Settings.from_environ(), offline=True)
    try:
        artifact = ensure_artifact(find_variant(BUNDLED_ALIAS), None, settings)
        started = time.perf_counter()
        engine = load_engine(name, artifact, EngineOptions(device))
        loaded = time.perf_counter()
        batch = artifact.plan.apply(picture(0))[None]
        logits = engine.logits(batch)
        warm = time.perf_counter()
        engine.logits(batch)
        done = time.perf_counter()
    except MfError as error:
        return {"error": error.message, "hint": error.hint}
    except Exception as error:  # broken installations raise anything
        return {"error": f"{type(error).__name__}: {error}", "hint": f"pip install --force-reinstall {name}"}
    return {
        "version": getattr(sys.modules.get(name.value), "__version__", None),
        "device": device,
        "load_ms": round(1000 * (loaded - started), 1),
        "picture_ms": round(1000 * (done - warm), 1),
        "logits": logits[0].tolist(),
    }


def _accelerators() -> dict[str, str | None]:
    """The devices of torch other than the CPU, with what they are; torch was imported by its engine."""
    torch = sys.modules["torch"]
    found: dict[str, str | None] = {}
    with contextlib.suppress(Exception):  # a driver that does not fit raises
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            found[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    with contextlib.suppress(Exception):
        if torch.backends.mps.is_available():
            found["mps"] = platform.processor()
    return found
