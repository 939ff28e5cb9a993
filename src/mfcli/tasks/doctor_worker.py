"""The process in which `mf doctor` tries one engine: it may crash or hang without taking the diagnosis along."""

import contextlib
import json
import os
import platform
import sys
import time
import warnings
from dataclasses import replace
from typing import Any

from mfcli.artifact.ensure import ensure_artifact
from mfcli.errors import MfError
from mfcli.inference.engines import load_engine
from mfcli.inference.engines.base import EngineName, EngineOptions
from mfcli.models.registry import find_variant
from mfcli.settings import BUNDLED_ALIAS, Settings
from mfcli.synthetic import make_picture


def probe(engine: str) -> None:
    """Classify a synthetic picture with the bundled model on each device; write the reports as JSON lines to stdout.

    A report holds version, device, load_ms, picture_ms (of a second call) and logits, or an error and a hint. Before an
    accelerator is tried, a line `trying` names it.
    """
    warnings.simplefilter("ignore")
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps what libraries print out of the reports
    name = EngineName(engine)

    def write(report: dict[str, Any]) -> None:
        reports.write(json.dumps(report) + "\n")
        reports.flush()

    cpu = _try_device(name, "cpu")
    write(cpu)
    if name is EngineName.TORCH and "error" not in cpu:
        for device, description in _list_accelerators().items():
            trying = {"device": device, "is": description}
            write({"trying": trying})
            write({**_try_device(name, device), **trying})
    os._exit(0)  # some runtimes are slow to shut down


def _try_device(name: EngineName, device: str) -> dict[str, Any]:
    settings = replace(Settings.from_environ(), offline=True)
    try:
        artifact = ensure_artifact(find_variant(BUNDLED_ALIAS), None, settings)
        started = time.perf_counter()
        engine = load_engine(name, artifact, EngineOptions(device))
        loaded = time.perf_counter()
        batch = artifact.plan.apply(make_picture(0))[None]
        logits = engine.logits(batch)
        warmed_up = time.perf_counter()
        engine.logits(batch)
        done = time.perf_counter()
    except MfError as error:
        return {"error": error.message, "hint": error.hint}
    except Exception as error:  # a broken installation can raise anything
        return {"error": f"{type(error).__name__}: {error}", "hint": f"pip install --force-reinstall {name}"}
    return {
        "version": getattr(sys.modules.get(name.value), "__version__", None),
        "device": device,
        "load_ms": round(1000 * (loaded - started), 1),
        "picture_ms": round(1000 * (done - warmed_up), 1),
        "logits": logits[0].tolist(),
    }


def _list_accelerators() -> dict[str, str | None]:
    """Return torch's devices other than the CPU, with their descriptions; the engine has imported torch."""
    torch = sys.modules["torch"]
    found: dict[str, str | None] = {}
    with contextlib.suppress(Exception):  # an incompatible driver can raise anything
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            found[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    with contextlib.suppress(Exception):
        if torch.backends.mps.is_available():
            found["mps"] = platform.processor()
    return found
