"""Settings from environment variables, and the package's defaults.

Only this module reads MF_* variables; the command line and `load_predictor` call it. Options take precedence over the
environment, which takes precedence over the defaults.
"""

import contextlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mfcli.errors import UsageError

BUNDLED_ALIAS = "bundled"
"""The name that always stands for the model that ships with the package."""

HUB = "https://huggingface.co"
"""What `Settings.endpoint` replaces."""

DEFAULT_CONFIDENCE = 0.8
"""Probability that a concept holds to be named."""

MIN_CONFIDENCE = 0.5
"""Below it, two concepts without a common class could hold it."""

DEFAULT_TOP_K = 5
DEFAULT_BENCHMARK_SECONDS, DEFAULT_BENCHMARK_ROUNDS = 12.0, 5
DEFAULT_MAX_ERROR = 0.1
"""Share of wrong answers among those of a model of the user's own that do not abstain."""
DEFAULT_MAX_PIXELS = 178_956_970
"""Twice the size above which Pillow warns; 0.5 GB as RGB."""

DEFAULT_DECODE_TIMEOUT_S = 20.0
"""Ten times what the slowest of ordinary pictures takes."""

DEFAULT_RAY_TIMEOUT_S = 300.0
"""Time for a cloud to start a machine."""

_FALSE = frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one run.

    Attributes:
        model: the default model.
        named_cache_dir: the cache folder named by MF_CACHE_DIR, if any.
        debug: whether errors show a traceback.
        offline: whether network access is forbidden.
        endpoint: replaces https://huggingface.co in addresses; None for no replacement.
        hub_cache_dir: the cache of Hugging Face's client.
        torch_hub_dir: the folder of torch.hub's checkpoints.
        compare: whether artifacts must have been compared with torch.
        models_dir: the folder of models of the user's own classes, if any.
        named_lock_file: the file of pinned checkpoints that MF_LOCK names, if any.
    """

    model: str
    named_cache_dir: Path | None
    debug: bool
    offline: bool = False
    endpoint: str | None = None
    hub_cache_dir: Path | None = None
    torch_hub_dir: Path | None = None
    compare: bool = False
    models_dir: Path | None = None
    named_lock_file: Path | None = None

    @property
    def lock_file(self) -> Path:
        """The file of pinned checkpoints: the named one, else that of the current folder."""
        return self.named_lock_file or Path("mf.lock")

    @property
    def cache_dir(self) -> Path:
        """The folder of checkpoints and artifacts: the named one, else the platform's (XDG_CACHE_HOME on Linux).

        Raises:
            UsageError: it depends on the home folder, and the user has none.
        """
        if self.named_cache_dir is not None:
            try:
                return self.named_cache_dir.expanduser()
            except RuntimeError as error:
                raise UsageError(f"MF_CACHE_DIR={self.named_cache_dir}: {error}", "use an absolute path") from error
        from platformdirs import user_cache_path

        with contextlib.suppress(RuntimeError):
            if (folder := user_cache_path("mfcli", appauthor=False)).is_absolute():
                return folder
        raise UsageError(
            "cannot determine the cache directory: this user has no home directory", "name a folder: MF_CACHE_DIR=DIR"
        )

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str] = os.environ, *, offline: bool = False, compare: bool = False
    ) -> "Settings":
        """Read the MF_* variables and their counterparts of other tools.

        MF_* variables take precedence over those of other tools. An empty variable counts as unset.

        Args:
            environ: the environment variables.
            offline: the option, which takes precedence over the environment.
            compare: likewise.
        """
        cache_dir = environ.get("MF_CACHE_DIR")
        return cls(
            model=environ.get("MF_MODEL") or BUNDLED_ALIAS,
            named_cache_dir=Path(cache_dir) if cache_dir else None,
            debug=_is_true(environ, "MF_DEBUG"),
            offline=offline or _is_true(environ, "MF_OFFLINE" if environ.get("MF_OFFLINE") else "HF_HUB_OFFLINE"),
            endpoint=environ.get("MF_ENDPOINT") or environ.get("HF_ENDPOINT") or None,
            hub_cache_dir=_find_hub_cache(environ),
            torch_hub_dir=_find_torch_hub(environ),
            compare=compare or _is_true(environ, "MF_CHECK"),
            named_lock_file=_expand_home(Path(environ["MF_LOCK"])) if environ.get("MF_LOCK") else None,
            models_dir=_expand_home(Path(environ["MF_MODELS_DIR"])) if environ.get("MF_MODELS_DIR") else None,
        )


def _is_true(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() not in _FALSE


def _find_user_cache(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache")


def _expand_home(folder: Path) -> Path:
    """Replace ~ with the home directory; without one, the path stays as it is and does not exist."""
    with contextlib.suppress(RuntimeError):
        return folder.expanduser()
    return folder


def _find_hub_cache(environ: Mapping[str, str]) -> Path:
    if named := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return _expand_home(Path(named))
    return _expand_home(Path(environ.get("HF_HOME") or _find_user_cache(environ) / "huggingface") / "hub")


def find_hub_token(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the token that Hugging Face's own tools would send; None where there is none."""
    if token := environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN"):
        return token.strip()
    folder = Path(environ.get("HF_HOME") or _find_user_cache(environ) / "huggingface")
    try:
        return _expand_home(Path(environ.get("HF_TOKEN_PATH") or folder / "token")).read_text().strip() or None
    except (OSError, UnicodeError):
        return None


def _find_torch_hub(environ: Mapping[str, str]) -> Path:
    return _expand_home(Path(environ.get("TORCH_HOME") or _find_user_cache(environ) / "torch") / "hub" / "checkpoints")


def usable_cores(cgroup_root: Path = Path("/sys/fs/cgroup"), own_cgroup: Path = Path("/proc/self/cgroup")) -> int:
    """Return the number of cores that this process may use, by its CPU affinity and its control group's quota.

    Args:
        cgroup_root: where the control groups are mounted.
        own_cgroup: the file that names the control group of the process.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    return max(1, min([cores, *_read_cgroup_quotas(cgroup_root, own_cgroup)]))


def _read_cgroup_quotas(root: Path, own_cgroup: Path) -> list[int]:
    """Return the quotas, in whole cores, of the process's control group (version 2) and its ancestors."""
    quotas = []
    for folder in list_cgroups(root, own_cgroup):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
            quotas.append(math.ceil(int(quota) / int(period)))
        except (OSError, ValueError):  # no limit at this level, which reads "max"
            pass
    return quotas


def list_cgroups(root: Path, own_cgroup: Path, prefix: str = "0::") -> list[Path]:
    """Return the folders of the process's control group and its ancestors.

    Args:
        root: where the control groups are mounted.
        own_cgroup: the file that names the control group of the process.
        prefix: what is before the group's name there; 0:: for version 2.
    """
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        return []
    group = next((line.partition(prefix)[2] for line in lines if prefix in line), "/")
    own = root / group.lstrip("/")
    return [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]
