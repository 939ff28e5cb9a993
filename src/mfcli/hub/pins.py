"""mf.lock: the checkpoint that each model must have, a file that users keep with their project.

A JSON object that has, by model, the address, size and SHA-256 of its checkpoint. The digest binds. Of an address only
the commit is used, and only in the model's own repository, so that a foreign file can refuse downloads, but not lead
them elsewhere.
"""

import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mfcli.errors import OutputError, UsageError
from mfcli.files import read_json, write_atomically
from mfcli.settings import HUB, Settings

if TYPE_CHECKING:
    from mfcli.hub.cache import StoredWeights

_SHA256, _COMMIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{6,64}")
_REVISION = re.compile(rf"({re.escape(HUB)}/[^/]+/[^/]+/resolve/)([^/]+)(/.+)")


@dataclass(frozen=True, slots=True)
class Pin:
    """The checkpoint of a model.

    Attributes:
        url: its address on the Hugging Face hub or elsewhere; None for a local file.
        size_bytes: its size.
        sha256: its digest in hex.
    """

    url: str | None
    size_bytes: int
    sha256: str

    def choose_revision(self, url: str) -> str:
        """Return an address at the commit that this one has, if both are of the same file in a repository."""
        own, other = _REVISION.fullmatch(self.url or ""), _REVISION.fullmatch(url)
        if own and other and own[1] == other[1] and own[3] == other[3] and _COMMIT.fullmatch(own[2]):
            return own[0]
        return url


def read_pins(settings: Settings, *, may_be_missing: bool = False) -> dict[str, Pin]:
    """Return the pins by model; none if there is no file.

    Args:
        settings: name the file.
        may_be_missing: whether that also holds for a file that MF_LOCK names.

    Raises:
        UsageError: it cannot be read, is not such a file, or is missing although MF_LOCK names it.
    """
    path = settings.lock_file
    try:
        pins = {name: Pin(**fields) for name, fields in read_json(path)["models"].items()}
        if not all(_SHA256.fullmatch(pin.sha256) for pin in pins.values()):
            raise ValueError("a digest is malformed")
    except FileNotFoundError as error:
        if settings.named_lock_file is None or may_be_missing:
            return {}
        hint = "mf download MODEL writes it, with pin=True"
        raise UsageError(f"MF_LOCK names {path}, which does not exist", hint) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "name another file: MF_LOCK=FILE") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{path} is not a lock file of mf", "restore it, or write it again: mf download MODEL, with pin=True"
        ) from error
    return pins


def write_pin(stored: "StoredWeights", name: str, settings: Settings) -> None:
    """Pin the stored checkpoint of a model, at its commit where the server named one.

    Raises:
        OutputError: the file cannot be written.
        UsageError: the existing file is not a lock file.
    """
    url = stored.url
    if url is not None and settings.endpoint and url.startswith(f"{settings.endpoint.rstrip('/')}/"):
        url = HUB + url.removeprefix(settings.endpoint.rstrip("/"))
    if url is not None and _COMMIT.fullmatch(stored.commit or ""):
        url = _REVISION.sub(rf"\g<1>{stored.commit}\g<3>", url)
    pins = read_pins(settings, may_be_missing=True) | {name: Pin(url, stored.size_bytes, stored.sha256)}
    models = {name: asdict(pins[name]) for name in sorted(pins)}
    path = settings.lock_file
    try:
        write_atomically(path, f"{json.dumps({'version': 1, 'models': models}, indent=1)}\n".encode())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", "name another file: MF_LOCK=FILE") from error
