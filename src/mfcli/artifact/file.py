"""The artifact file: finding, opening and writing it.

An artifact is an ONNX file with the input `input` float32 (N, 3, H, W) and the output `logits` float32 (N, classes), N
dynamic. Its metadata properties hold the preprocessing plan, the labels, the origin of the weights, and the result of
the comparison with torch. A JSON sidecar holds the file's SHA-256, size and modification time, the SHA-256 of its graph
alone, and where its weights came from: checkpoints with the same weights share an artifact, which is named after the
first one.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfcli.artifact.metadata import read_metadata
from mfcli.errors import ModelError, UsageError, first_line
from mfcli.files import is_file, list_files, open_regular, read_json, sha256_of, sha256_of_json, write_atomically
from mfcli.hub.bundled import REINSTALL, bundled_file, is_bundled
from mfcli.models.own import MODEL_FILE
from mfcli.models.preprocess import PreprocessPlan
from mfcli.models.registry import Pretraining, Variant
from mfcli.results import Label, Output
from mfcli.settings import Settings

if TYPE_CHECKING:
    from mfcli.models.abstention import Thresholds

FORMAT_VERSION = 2
"""Incremented whenever the graph or the metadata of an artifact changes meaning; older files are then rebuilt."""
METADATA_PREFIX = "mfcli."


@dataclass(frozen=True, slots=True)
class Artifact:
    """An opened and checked artifact.

    Attributes:
        path: the ONNX file.
        variant: the variant's name.
        key: the cache key, see `artifact_key`.
        weights_sha256: digest of the checkpoint it was built from.
        source_url: where that checkpoint is published, None if nowhere.
        checkpoint: the checkpoint's file, for the torch engine; None if it is unknown or gone.
        plan: the preprocessing.
        labels: one per class, in head order.
        versions: of the packages that built it.
        graph_sha256: digest of the graph, weights included; None if it was built by an older version.
        check: the largest difference from torch at each batch size, in units of the logits' standard deviation.
        thresholds: when the bundled model, or one of the user's own classes, abstains; None for others.
        folder: where a model of the user's own classes is; None for others.
        size_bytes: the file's size.
        mtime_ns: the file's modification time when it was checked.
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
    graph_sha256: str | None
    check: dict[str, float]
    thresholds: "Thresholds | None"
    folder: Path | None
    size_bytes: int
    mtime_ns: int = field(compare=False)

    @property
    def remedy(self) -> str:
        """What to do if the file seems damaged."""
        return REINSTALL if is_bundled(self.path) else "mf cache verify"


def artifact_path(variant: Variant, weights_sha256: str, settings: Settings) -> Path:
    """Return the path of a checkpoint's artifact in the cache.

    Args:
        variant: the model.
        weights_sha256: digest of the checkpoint.
        settings: locate the cache.
    """
    return settings.cache_dir / "artifacts" / f"{variant.name}-{artifact_key(variant, weights_sha256)[:16]}.onnx"


def artifact_key(variant: Variant, weights_sha256: str, half_weights: bool = False) -> str:
    """Return the SHA-256 over all that determines an artifact: weights, format version, registry row, options.

    Args:
        variant: the model.
        weights_sha256: digest of the checkpoint.
        half_weights: whether the weights are stored as float16.
    """
    recipe = {
        "format_version": FORMAT_VERSION,
        "weights_sha256": weights_sha256,
        "variant": variant.name,
        "architecture": asdict(variant.architecture),
        "preprocess": [variant.input_size, variant.crop_pct, variant.interpolation, variant.mean, variant.std],
        "half_weights": half_weights,
    }
    return sha256_of_json(recipe)


def find_artifact(variant: Variant, weights_sha256: str, checkpoint: Path | None, settings: Settings) -> Artifact:
    """Open a checkpoint's artifact in the cache: its own, or that of another file with the same weights.

    Args:
        variant: the model.
        weights_sha256: digest of the checkpoint.
        checkpoint: the file, if known.
        settings: locate the cache.

    Raises:
        ModelError: there is none, or it is not valid.
    """
    path = locate_artifact(variant, weights_sha256, settings)
    artifact = open_artifact(path, variant, artifact_key(variant, weights_sha256), checkpoint)
    return replace(artifact, weights_sha256=weights_sha256)


def locate_artifact(variant: Variant, weights_sha256: str, settings: Settings) -> Path:
    """Return the path that `find_artifact` opens."""
    path, key = artifact_path(variant, weights_sha256, settings), artifact_key(variant, weights_sha256)
    if is_file(path):
        return path
    shared = (other for other in list_files(path.parent, f"{variant.name}-*.onnx") if key in read_origins(other))
    return next(shared, path)


def find_artifacts(variant: Variant, settings: Settings) -> list[Artifact]:
    """Return a variant's valid artifacts on this machine: the bundled one, then those in the cache, sorted by name."""
    from mfcli.hub.cache import list_artifacts

    if variant.folder is not None:
        return [open_artifact(variant.folder / MODEL_FILE, variant, None, None)]
    bundled = variant.pretraining is Pretraining.BUNDLED
    paths = [bundled_file(f"{variant.name}.onnx")] if bundled else []
    with contextlib.suppress(UsageError):  # no cache directory
        paths += [path for name, path in list_artifacts(settings) if name == variant.name]
    found = []
    for path in paths:
        with contextlib.suppress(ModelError):
            found.append(open_artifact(path, variant, None, None))
    return found


def bundled_is_intact(variant: Variant) -> bool:
    """Return whether the bundled artifact has the digest in its sidecar.

    Raises:
        ModelError: one of the two cannot be read.
    """
    path = bundled_file(f"{variant.name}.onnx")
    try:
        return bool(sha256_of(path) == read_json(path.with_suffix(".json"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError, ModelError) as error:
        raise ModelError(f"{path} or its .json file cannot be read: {first_line(error)}", REINSTALL) from error


def open_artifact(path: Path, variant: Variant, key: str | None, checkpoint: Path | None) -> Artifact:
    """Open an artifact and check its size, format version, variant and key; nothing is written.

    The digest is compared only in the cache, and only if the modification time is not the recorded one (see
    `record_mtime`): hashing at every start would take longer than a prediction.

    Args:
        path: the ONNX file; its sidecar lies beside it.
        variant: the variant that it must have.
        key: the key that it must have; None for any.
        checkpoint: the checkpoint that it was built from, if known.

    Raises:
        ModelError: it is missing, truncated, foreign, or of another version, variant or key.
    """
    sidecar = _read_sidecar(path)
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            size_bytes = status.st_size
            metadata = dict(read_metadata(file, size_bytes))
        if sidecar["size_bytes"] != size_bytes:
            raise ModelError(f"{path} has {size_bytes} bytes instead of {sidecar['size_bytes']}", REINSTALL)
        fields = {name: json.loads(metadata[METADATA_PREFIX + name]) for name in _FIELDS}
        wanted = {"format_version": FORMAT_VERSION, "variant": variant.name, "key": key or fields["key"]}
        if key in read_origins(path):  # the artifact of another file with the same weights
            wanted["key"] = fields["key"]
        if different := [name for name, value in wanted.items() if fields[name] != value]:
            raise ModelError(f"{path} has another {different[0]}: {fields[different[0]]}", REINSTALL)
        is_touched = not is_bundled(path) and sidecar.get("mtime_ns") != status.st_mtime_ns
        if is_touched and sha256_of(path) != sidecar["sha256"]:
            raise ModelError(f"{path} changed since it was built", REINSTALL)
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
            graph_sha256=sidecar.get("graph_sha256"),
            check=fields["check"],
            thresholds=_read_thresholds(metadata, sidecar),
            folder=variant.folder,
            size_bytes=size_bytes,
            mtime_ns=status.st_mtime_ns,
        )
    except OSError as error:
        raise ModelError(f"cannot read the artifact {path}: {error.strerror}", REINSTALL) from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ModelError(f"{path} is damaged, or not an artifact of mfcli", REINSTALL) from error


def _read_thresholds(metadata: dict[str, str], sidecar: dict[str, Any]) -> "Thresholds | None":
    """Return those in the file, as mf train writes them, or beside it, as weights/thresholds.py does."""
    text = metadata.get(f"{METADATA_PREFIX}thresholds")
    fields = sidecar.get("thresholds") if text is None else json.loads(text)
    if fields is None:
        return None
    from mfcli.models.abstention import Thresholds

    return Thresholds.from_json(fields)


_FIELDS = ("format_version", "variant", "key", "weights_sha256", "source_url", "labels", "versions", "check")


def record_mtime(artifact: Artifact) -> None:
    """Record a new modification time in an artifact's sidecar, so that it is not hashed again the next time.

    In a read-only cache nothing is recorded.
    """
    with contextlib.suppress(OSError, ModelError):
        update_sidecar(artifact.path, mtime_ns=artifact.mtime_ns)


def read_origins(path: Path) -> dict[str, dict[str, str]]:
    """Return where the weights of an artifact came from, by the cache key of each checkpoint: `origin` and `date`.

    It is empty if there is no sidecar, or that of an older version.
    """
    with contextlib.suppress(ModelError, AttributeError):
        found = _read_sidecar(path).get("origins", {})
        return {key: origin for key, origin in found.items() if isinstance(origin, dict)}
    return {}


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path.with_suffix(".json")))
    except OSError as error:
        raise ModelError(f"cannot read the artifact {path}: {error.strerror}", REINSTALL) from error
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path} is damaged, or not an artifact of mfcli", REINSTALL) from error


def update_sidecar(path: Path, **changes: object) -> None:
    """Change fields of an artifact's sidecar, or write it; without one, an artifact counts as damaged.

    Raises:
        ModelError: there is a sidecar that cannot be read.
        OSError: it cannot be written.
    """
    sidecar = path.with_suffix(".json")
    known = _read_sidecar(path) if is_file(sidecar) else {}
    if known | changes != known:
        write_atomically(sidecar, json.dumps(known | changes).encode())


def runtime_source(path: Path, extra: Iterable[Output] = ()) -> Path | bytes:
    """Return what a runtime opens: a path, or the model itself if the path is not UTF-8 or there are more outputs.

    Args:
        path: the ONNX file.
        extra: what is computed besides the logits.

    Raises:
        ModelError: outputs are to be added, and the file cannot be read, or has another graph.
    """
    if added := [output for output in extra if output is not Output.DISTANCE]:  # which the file has
        from mfcli.artifact.outputs import read_with_outputs

        return read_with_outputs(path, added)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.read_bytes()
    return path
