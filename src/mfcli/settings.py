"""The program's own environment variables and their defaults, read once.

Nothing else in the package looks at MF_* variables. A flag beats the environment, the environment beats the
default; `cli` and `load_predictor` are the callers.
"""

import contextlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mfcli.errors import UsageError

BUNDLED_ALIAS = "bundled"
"""The name under which the model that ships with the package can always be asked for."""

DEFAULT_TOP_K = 5
DEFAULT_BENCHMARK_SECONDS, DEFAULT_BENCHMARK_ROUNDS = 12.0, 5
DEFAULT_MAX_PIXELS = 178_956_970
"""Twice the size at which Pillow begins to warn: 0.5 GB as RGB."""

_FALSE = frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says.

    Attributes:
        model: the model used when none is named.
        named_cache_dir: the folder that holds prepared artifacts, where one is named.
        debug: whether a failure shows its traceback.
        offline: whether no connection may be opened.
        endpoint: stands for https://huggingface.co in every address, None for that itself.
        hub_cache_dir: where Hugging Face's own client keeps files.
        torch_hub_dir: where torch.hub keeps checkpoints.
    """

    model: str
    named_cache_dir: Path | None
    debug: bool
    offline: bool = False
    endpoint: str | None = None
    hub_cache_dir: Path | None = None
    torch_hub_dir: Path | None = None

    @property
    def cache_dir(self) -> Path:
        """The folder that holds prepared artifacts: the named one, else the platform's (XDG_CACHE_HOME on Linux).

        Raises:
            UsageError: it is in the home folder of somebody who has none.
        """
        if self.named_cache_dir is not None:
            try:
                return self.named_cache_dir.expanduser()
            except RuntimeError as error:
                raise UsageError(
                    f"MF_CACHE_DIR={self.named_cache_dir}: {error}", "name a folder by its path"
                ) from error
        from platformdirs import user_cache_path

        with contextlib.suppress(RuntimeError):
            if (folder := user_cache_path("mfcli", appauthor=False)).is_absolute():
                return folder
        raise UsageError(
            "this user has no home folder, so nobody knows where the cache is", "name a folder: MF_CACHE_DIR=DIR"
        )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ, *, offline: bool = False) -> "Settings":
        """Read MF_MODEL, MF_CACHE_DIR, MF_DEBUG, MF_OFFLINE, MF_ENDPOINT, and what the ecosystem has of the same kind.

        `offline` is the flag, which beats the environment. An empty variable counts as unset; the program's own name
        comes before the ecosystem's.
        """
        cache_dir = environ.get("MF_CACHE_DIR")
        return cls(
            model=environ.get("MF_MODEL") or BUNDLED_ALIAS,
            named_cache_dir=Path(cache_dir) if cache_dir else None,
            debug=_is_true(environ, "MF_DEBUG"),
            offline=offline or _is_true(environ, "MF_OFFLINE" if environ.get("MF_OFFLINE") else "HF_HUB_OFFLINE"),
            endpoint=environ.get("MF_ENDPOINT") or environ.get("HF_ENDPOINT") or None,
            hub_cache_dir=_hub_cache_dir(environ),
            torch_hub_dir=_torch_hub_dir(environ),
        )


def _is_true(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() not in _FALSE


def _user_cache(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache")


def _expanded(folder: Path) -> Path:
    """With the home folder in the place of ~; where there is none it stays, and names nothing that is there."""
    with contextlib.suppress(RuntimeError):
        return folder.expanduser()
    return folder


def _hub_cache_dir(environ: Mapping[str, str]) -> Path:
    if named := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return _expanded(Path(named))
    return _expanded(Path(environ.get("HF_HOME") or _user_cache(environ) / "huggingface") / "hub")


def _torch_hub_dir(environ: Mapping[str, str]) -> Path:
    return _expanded(Path(environ.get("TORCH_HOME") or _user_cache(environ) / "torch") / "hub" / "checkpoints")


def usable_cores(cgroup_root: Path = Path("/sys/fs/cgroup"), own_cgroup: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many cores this process may keep busy: those it may run on, or fewer by its control group's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    return max(1, min([cores, *_cgroup_quotas(cgroup_root, own_cgroup)]))


def _cgroup_quotas(root: Path, own_cgroup: Path) -> list[int]:
    """The quotas, in whole cores, of the process's control group (version 2) and of those around it."""
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        return []
    group = next((line[3:] for line in lines if line.startswith("0::")), "/")
    own = root / group.lstrip("/")
    quotas = []
    for folder in (own, *own.parents):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
            quotas.append(math.ceil(int(quota) / int(period)))
        except (OSError, ValueError):  # no limit here, which reads "max"
            pass
        if folder == root:
            break
    return quotas
