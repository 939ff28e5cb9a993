"""Diagnose the installation: what is installed, and what works on this machine, without network access.

Findings are yielded one by one, so that they can be shown at once. Each engine is tried in its own process
(doctor_worker.py), because a broken one may crash instead of raising, and because torch takes seconds to import.
"""

import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mfcli.artifact.file import bundled_is_intact
from mfcli.errors import MfError
from mfcli.files import exists, is_folder
from mfcli.hub.bundled import REINSTALL, bundled_file
from mfcli.hub.cache import list_artifacts, list_checkpoints
from mfcli.inference.engines.base import EngineName
from mfcli.inference.isolation import DecoderPool
from mfcli.inference.loading import IsolationError, PictureLoader
from mfcli.inference.sandbox import Measure
from mfcli.models.preprocess import make_preprocess_plan
from mfcli.models.registry import default_variant, find_variant
from mfcli.settings import (
    BUNDLED_ALIAS,
    DEFAULT_DECODE_TIMEOUT_S,
    DEFAULT_MAX_PIXELS,
    Settings,
    usable_cores,
)
from mfcli.version import __version__

DEFAULT_ENGINE = EngineName.ONNXRUNTIME
"""The engine that auto stands for on a CPU, and the reference for the other engines."""

MAX_DIFFERENCE = 0.01
"""Largest difference from the default engine's logits that is accepted, in standard deviations of these logits."""

_TIMEOUT_S = 180.0

_DEVELOPERS = ("bench", "dev", "docs", "fuzz", "release", "test")
"""Extras that only developers of mfcli need."""
_TORCH_PACKAGES = ("torch", "timm")
_TORCH_USES = "GPUs, create_model, comparisons with it, and checkpoints older than its zip format"

_CPU_FEATURES = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16"),
    *("asimd", "i8mm", "bf16", "sve"),
)
"""Instruction sets that speed up matrix products, as /proc/cpuinfo names them."""


class Group(StrEnum):
    """The subject of a finding."""

    PROGRAM = "program"
    MACHINE = "machine"
    ENGINES = "engines"
    EXTRAS = "extras"
    CACHE = "cache"
    NETWORK = "network"
    MODELS = "models"


class FindingStatus(StrEnum):
    """The outcome of a check; FACT is information without a check."""

    FACT = "fact"
    OK = "ok"
    ABSENT = "absent"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        group: the subject.
        name: what was looked at, with a unit as suffix.
        status: the outcome.
        value: a JSON value.
        hint: the next step, if something needs to be done.
    """

    group: Group
    name: str
    status: FindingStatus
    value: Any
    hint: str | None = None


def doctor(settings: Settings) -> Iterator[Finding]:
    """Yield all findings, the quick ones first; a failed check is a finding, not an exception."""
    yield from _describe_program()
    yield from _describe_machine()
    yield from _check_cache(settings)
    yield from _check_network(settings)
    yield from _check_models(settings)
    yield from _check_extras()
    yield from _check_engines()


def is_working(findings: Sequence[Finding]) -> bool:
    """Return whether the bundled model is intact and the default engine can run it."""
    passed = {(f.group, f.name) for f in findings if f.status is FindingStatus.OK}
    return {(Group.MODELS, BUNDLED_ALIAS), (Group.ENGINES, DEFAULT_ENGINE.value)} <= passed


def _check(group: Group, name: str, passed: bool, value: Any, hint: str | None) -> Finding:
    """Return a finding that is OK, or FAILED with a hint."""
    status = FindingStatus.OK if passed else FindingStatus.FAILED
    return Finding(group, name, status, value, None if passed else hint)


def _report_error(group: Group, name: str, error: MfError) -> Finding:
    return Finding(group, name, FindingStatus.FAILED, error.message, error.hint)


def _describe_program() -> Iterator[Finding]:
    yield Finding(Group.PROGRAM, "mfcli", FindingStatus.FACT, __version__)
    yield Finding(Group.PROGRAM, "folder", FindingStatus.FACT, str(Path(__file__).parent.parent))
    yield Finding(Group.PROGRAM, "python", FindingStatus.FACT, f"{platform.python_version()} {sys.executable}")
    yield Finding(Group.PROGRAM, "platform", FindingStatus.FACT, platform.platform())


def _describe_machine() -> Iterator[Finding]:
    cpu = _read_cpuinfo()
    name = cpu.get("model name") or platform.processor() or platform.machine()
    yield Finding(Group.MACHINE, "processor", FindingStatus.FACT, name)
    if flags := (cpu.get("flags") or cpu.get("Features") or "").split():
        features = [name for name in _CPU_FEATURES if name in flags]
        yield Finding(Group.MACHINE, "features", FindingStatus.FACT, features)
    yield Finding(Group.MACHINE, "usable_cores", FindingStatus.FACT, usable_cores())
    yield Finding(Group.MACHINE, "cores", FindingStatus.FACT, os.cpu_count())
    with contextlib.suppress(ValueError, OSError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield Finding(Group.MACHINE, "memory_mib", FindingStatus.FACT, total >> 20)
    with contextlib.suppress(ValueError, OSError):  # "max" without a limit; no such file outside a control group
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        yield Finding(Group.MACHINE, "memory_limit_mib", FindingStatus.FACT, limit >> 20)
    yield _check_isolation()


def _check_isolation() -> Finding:
    """Find out what the processes that decode pictures are held to here."""
    plan = make_preprocess_plan(find_variant(BUNDLED_ALIAS))
    loader = PictureLoader(plan, exif=True, max_pixels=DEFAULT_MAX_PIXELS, formats=(), thumbnail_side=None)
    try:
        measures = DecoderPool(loader, DEFAULT_DECODE_TIMEOUT_S).find_measures()
    except IsolationError:
        hint = "no process can be started: pictures are decoded in threads, with a time limit alone"
        return Finding(Group.MACHINE, "isolation", FindingStatus.ABSENT, None, hint)
    missing = [measure for measure in Measure if measure not in measures]
    if missing:
        hint = f"not on this system: {' '.join(missing)}"
        return Finding(Group.MACHINE, "isolation", FindingStatus.FACT, measures, hint)
    return Finding(Group.MACHINE, "isolation", FindingStatus.OK, measures)


def _read_cpuinfo() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo; none if there is no such file."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _check_cache(settings: Settings) -> Iterator[Finding]:
    try:
        folder = settings.cache_dir
    except MfError as error:
        yield _report_error(Group.CACHE, "folder", error)
        return
    yield Finding(Group.CACHE, "folder", FindingStatus.FACT, str(folder))
    parents: Sequence[Path] = ()
    with contextlib.suppress(OSError):  # the working directory was deleted
        parents = folder.absolute().parents
    existing = next((path for path in (folder, *parents) if exists(path)), folder)
    writable = is_folder(existing) and os.access(existing, os.W_OK | os.X_OK)
    yield _check(Group.CACHE, "writable", writable, writable, "name another folder: MF_CACHE_DIR=DIR")
    yield Finding(Group.CACHE, "size_mib", FindingStatus.FACT, round(_sum_file_sizes(folder) / 2**20, 1))
    with contextlib.suppress(OSError):
        yield Finding(Group.CACHE, "free_mib", FindingStatus.FACT, shutil.disk_usage(existing).free >> 20)


def _sum_file_sizes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(parent) / name).lstat().st_size
    return total


def _check_network(settings: Settings) -> Iterator[Finding]:
    yield Finding(Group.NETWORK, "offline", FindingStatus.FACT, settings.offline)
    endpoint = settings.endpoint and redact_credentials(settings.endpoint)
    yield Finding(Group.NETWORK, "endpoint", FindingStatus.FACT, endpoint or "https://huggingface.co")
    for scheme, address in sorted(urllib.request.getproxies().items()):
        shown = address if scheme == "no" else redact_credentials(address)
        yield Finding(Group.NETWORK, f"{scheme}_proxy", FindingStatus.FACT, shown)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if bundle := os.environ.get(name):
            hint = f"unset {name}, or set it to an existing file"
            yield _check(Group.NETWORK, name.lower(), exists(Path(bundle)), bundle, hint)


def redact_credentials(address: str) -> str:
    """Return an address without user, password and query; a proxy's address may lack its scheme."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", address)
    rest = address.removeprefix(scheme[0]) if scheme else address
    return (scheme[0] if scheme else "") + rest.rpartition("@")[2].partition("?")[0]


def _check_models(settings: Settings) -> Iterator[Finding]:
    try:
        default = default_variant(settings)
    except MfError as error:
        yield _report_error(Group.MODELS, "default", error)
    else:
        yield Finding(Group.MODELS, "default", FindingStatus.FACT, default.name)
    sizes: dict[str, dict[str, int]] = {}
    with contextlib.suppress(MfError, OSError):
        bundled = find_variant(BUNDLED_ALIAS).name
        _add_size(sizes, bundled, "artifact_bytes", bundled_file(f"{bundled}.onnx"))
    yield _check_bundled_model()
    with contextlib.suppress(MfError, OSError):
        for path in list_checkpoints(settings):
            _add_size(sizes, path.parent.name, "checkpoint_bytes", path)
        for name, path in list_artifacts(settings):
            _add_size(sizes, name, "artifact_bytes", path)
    for name, size in sorted(sizes.items()):
        yield Finding(Group.MODELS, name, FindingStatus.FACT, size)


def _check_bundled_model() -> Finding:
    try:
        intact = bundled_is_intact(find_variant(BUNDLED_ALIAS))
    except MfError as error:
        return _report_error(Group.MODELS, BUNDLED_ALIAS, error)
    value = "as installed" if intact else "its artifact was changed or is damaged"
    return _check(Group.MODELS, BUNDLED_ALIAS, intact, value, REINSTALL)


def _add_size(sizes: dict[str, dict[str, int]], name: str, kind: str, path: Path) -> None:
    model = sizes.setdefault(name, {})
    model[kind] = model.get(kind, 0) + path.stat().st_size


def _check_extras() -> Iterator[Finding]:
    for extra, packages in _list_extras().items():
        versions = {name: version for name in packages if (version := _find_version(name.partition("[")[0]))}
        complete = len(versions) == len(packages)
        hint = None if complete else f"pip install {shlex.join(packages)}"
        status = FindingStatus.OK if complete else FindingStatus.ABSENT
        yield Finding(Group.EXTRAS, extra, status, versions or None, hint)


def _list_extras() -> dict[str, list[str]]:
    """Return the packages that each extra requires, without the extras for developers."""
    try:
        requirements = metadata.requires("metaformer-cli") or []
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return {}
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        match = re.match(r"([\w.-]+(?:\[[\w,-]+\])?).*\bextra == ['\"]([\w-]+)['\"]", requirement)
        if match and match[2] not in _DEVELOPERS:
            extras.setdefault(match[2], []).append(match[1])
    return extras


def _find_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _check_engines() -> Iterator[Finding]:
    reference: list[float] | None = None
    names = [DEFAULT_ENGINE, *(name for name in EngineName if name not in (EngineName.AUTO, DEFAULT_ENGINE))]
    for name in names:
        packages = _TORCH_PACKAGES if name is EngineName.TORCH else (name.value,)  # named after its package
        if missing := [package for package in packages if find_spec(package) is None]:
            status, value = FindingStatus.ABSENT, None
            if name is EngineName.TORCH:
                status, value = FindingStatus.FACT, f"not installed, needed for {_TORCH_USES}"
            yield Finding(Group.ENGINES, name.value, status, value, f"pip install {' '.join(missing)}")
            continue
        for report in _run_probe(name):
            logits = report.pop("logits", None)
            if name is DEFAULT_ENGINE:
                reference = logits
            device = report.get("device")
            shown = name.value if device in (None, "auto", "cpu") else f"{name.value} on {device}"
            if logits is None:
                yield Finding(Group.ENGINES, shown, FindingStatus.FAILED, report["error"], report.get("hint"))
            elif reference is None:  # the default engine does not work
                yield Finding(Group.ENGINES, shown, FindingStatus.OK, report)
            else:
                yield _compare_logits(shown, report, logits, reference)


def _compare_logits(name: str, report: dict[str, Any], logits: list[float], reference: list[float]) -> Finding:
    difference = float(np.abs(np.subtract(logits, reference)).max() / np.std(reference))
    report["difference"] = float(f"{difference:.1e}") if np.isfinite(difference) else None
    if not np.isfinite(logits).all():
        hint = "it produced NaN or infinite logits: check that the bundled model is as installed"
    elif not np.isfinite(reference).all():
        hint = f"{DEFAULT_ENGINE} produced NaN or infinite logits, so there is no reference"
    else:
        hint = f"its logits differ from those of {DEFAULT_ENGINE}: use another engine or device"
    return _check(Group.ENGINES, name, difference <= MAX_DIFFERENCE, report, hint)  # fails for NaN too


def _run_probe(name: EngineName) -> list[dict[str, Any]]:
    """Run `doctor_worker.probe` in a new process and return its reports, one per device."""
    program = f"from mfcli.tasks.doctor_worker import probe; probe({name.value!r})"
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
        return _parse_reports(error.stdout or b"", f"no answer within {_TIMEOUT_S:g} s")
    code = done.returncode
    crash = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return _parse_reports(done.stdout, f"its process {crash}" if code else None)


def _parse_reports(lines: bytes, failure: str | None) -> list[dict[str, Any]]:
    """Return the reports of a probe; if the process failed, the last one is about the device it was trying."""
    reports: list[dict[str, Any]] = []
    trying: dict[str, Any] = {}
    for line in lines.splitlines(keepends=True):
        if not line.endswith(b"\n"):  # cut off by a crash
            break
        report = json.loads(line)
        if "trying" in report:
            trying = report["trying"]
        else:
            reports.append(report)
    if failure:
        reports.append({**trying, "error": failure})
    return reports
