"""One artifact: a self-describing ONNX file that answers without torch, and opening, finding and writing it.

Input `input` float32 (N, 3, H, W), output `logits` float32 (N, classes), dynamic N. Its metadata properties hold the
preprocessing plan, the labels, where the weights came from, and the check that was run when it was made. A JSON sidecar
holds the file's own SHA-256, size and modification time.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfcli.artifact.metadata import metadata_props
from mfcli.errors import ModelError, OutputError, UsageError
from mfcli.files import is_file, sha256_of, write_atomically
from mfcli.hub.bundled import REINSTALL, bundled_file, is_bundled
from mfcli.hub.cache import list_artifacts
from mfcli.models.preprocess import PreprocessPlan
from mfcli.models.registry import Pretraining, Variant
from mfcli.results import Label
from mfcli.settings import Settings

if TYPE_CHECKING:
    from onnx import ModelProto


FORMAT_VERSION = 2
"""Raised whenever the graph or the metadata of an artifact changes meaning; older files are then rebuilt."""
METADATA_PREFIX = "mfcli."


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact that was opened and found right.

    Attributes:
        path: the ONNX file.
        variant: the variant's name.
        key: the cache key, see `artifact_key`.
        weights_sha256: digest of the checkpoint it was made from.
        source_url: where that checkpoint is published, None if nowhere.
        checkpoint: the checkpoint's file, for the engine that needs it; None where it is not known.
        plan: the preprocessing.
        labels: one per class, in head order.
        versions: of the packages that made it.
        check: the largest difference to torch found at each batch size, as a share of the logits' standard deviation.
        size_bytes: of the file.
    """

    path: Path
    variant: str
    key: str
    weights_sha256: str
    source_url: str | None
    checkpoint: Path | None
    plan: PreprocessPlan
    labels: tuple[Label, ...]
    versions: dict[str, str]
    check: dict[str, float]
    size_bytes: int

    @property
    def remedy(self) -> str:
        """What to do where the file seems to be damaged."""
        return REINSTALL if is_bundled(self.path) else "mf cache verify"


def artifact_path(variant: Variant, weights_sha256: str, settings: Settings) -> Path:
    """Return where the artifact of a checkpoint is kept."""
    return settings.cache_dir / "artifacts" / f"{variant.name}-{artifact_key(variant, weights_sha256)[:16]}.onnx"


def artifact_key(variant: Variant, weights_sha256: str, half_weights: bool = False) -> str:
    """Return 64 hex digits over all that shapes an artifact: weights, format, row, options."""
    recipe = {
        "format_version": FORMAT_VERSION,
        "weights_sha256": weights_sha256,
        "variant": variant.name,
        "architecture": asdict(variant.architecture),
        "preprocess": [variant.input_size, variant.crop_pct, variant.interpolation, variant.mean, variant.std],
        "half_weights": half_weights,
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def find_artifacts(variant: Variant, settings: Settings) -> list[Artifact]:
    """Return the good artifacts of a variant on this machine: the bundled one, and those in the cache by name."""
    bundled = variant.pretraining is Pretraining.BUNDLED
    paths = [bundled_file(f"{variant.name}.onnx")] if bundled else []
    with contextlib.suppress(UsageError):  # nobody knows where the cache is
        paths += [path for name, path in list_artifacts(settings) if name == variant.name]
    found = []
    for path in paths:
        with contextlib.suppress(ModelError):
            found.append(open_artifact(path, variant, None, None))
    return found


def bundled_is_intact(variant: Variant) -> bool:
    """Whether the bundled artifact is byte by byte what was installed.

    Raises:
        ModelError: it, or its sidecar, cannot be read.
    """
    path = bundled_file(f"{variant.name}.onnx")
    try:
        return bool(sha256_of(path) == json.loads(path.with_suffix(".json").read_bytes())["sha256"])
    except (OSError, ValueError, KeyError, TypeError, ModelError) as error:
        raise ModelError(f"{path} and its .json beside it cannot be read: {error}", REINSTALL) from error


def open_artifact(path: Path, variant: Variant, key: str | None, checkpoint: Path | None) -> Artifact:
    """Open an artifact and check that it is whole and the one that is meant.

    Size, format version, variant and key are checked; the digest is checked when the file is written and, in the cache,
    when its time of change is another than it was then.

    Args:
        path: the ONNX file; its sidecar lies beside it.
        variant: the row it must be of.
        key: the key it must have; None for any.
        checkpoint: the weights it was made from, where they are at hand.

    Raises:
        ModelError: it is missing, torn, foreign, or of another version, variant or key.
    """
    try:
        sidecar = json.loads(path.with_suffix(".json").read_bytes())
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            size_bytes = status.st_size
            metadata = dict(metadata_props(file, size_bytes))
        if sidecar["size_bytes"] != size_bytes:
            raise ModelError(f"{path} has {size_bytes} bytes instead of {sidecar['size_bytes']}", REINSTALL)
        fields = {name: json.loads(metadata[METADATA_PREFIX + name]) for name in _FIELDS}
        wanted = {"format_version": FORMAT_VERSION, "variant": variant.name, "key": key or fields["key"]}
        if different := [name for name, value in wanted.items() if fields[name] != value]:
            raise ModelError(f"{path} is of another {different[0]}: {fields[different[0]]}", REINSTALL)
        if not is_bundled(path) and sidecar.get("mtime_ns") != status.st_mtime_ns:
            if sha256_of(path) != sidecar["sha256"]:
                raise ModelError(f"{path} was changed since it was made", REINSTALL)
            sidecar["mtime_ns"] = status.st_mtime_ns  # it was only touched, or copied
            with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not correctness
                write_atomically(path.with_suffix(".json"), json.dumps(sidecar).encode())
        return Artifact(
            path=path,
            variant=fields["variant"],
            key=fields["key"],
            weights_sha256=fields["weights_sha256"],
            source_url=fields["source_url"],
            checkpoint=checkpoint if checkpoint and is_file(checkpoint) else None,
            plan=PreprocessPlan.from_json(metadata[METADATA_PREFIX + "preprocess"]),
            labels=tuple(Label(wnid, name) for wnid, name in fields["labels"]),
            versions=fields["versions"],
            check=fields["check"],
            size_bytes=size_bytes,
        )
    except OSError as error:
        raise ModelError(f"cannot read the artifact {path}: {error.strerror}", REINSTALL) from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(f"{path} is torn or not an artifact of mfcli", REINSTALL) from error


_FIELDS = (
    "format_version",
    "variant",
    "key",
    "weights_sha256",
    "source_url",
    "preprocess",
    "labels",
    "versions",
    "check",
)


def write_artifact(proto: "ModelProto", path: Path) -> None:
    """Write graph and sidecar beside their targets and rename them, the sidecar last: it says that all is there."""
    data = proto.SerializeToString()
    sidecar: dict[str, Any] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    write_atomically(path, data)
    if sha256_of(path) != sidecar["sha256"]:
        raise OutputError(f"{path} reads back differently than it was written", "check the disk")
    if not is_bundled(path):
        sidecar["mtime_ns"] = path.stat().st_mtime_ns
    write_atomically(path.with_suffix(".json"), json.dumps(sidecar).encode())
