"""The self-describing ONNX artifact: made once from a variant and its weights, opened ever after without torch.

One file: input `input` float32 (N, 3, H, W), output `logits` float32 (N, classes), N free; its metadata properties
hold the preprocessing plan, the labels, where the weights came from, and the check that was run when it was made. A
JSON sidecar holds the file's own SHA-256, size and time of change. `ensure` is what tasks call; `build` is what makes a
file.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfcli.artifact.metadata import metadata_props
from mfcli.errors import ModelError, OutputError, UsageError
from mfcli.files import is_file, remembered_sha256, sha256_of, unwritable, write_atomically
from mfcli.hub.acquire import PLAIN_WISH, Wish, check_digest, obtain, take_by_hand, waits_by_hand
from mfcli.hub.cache import (
    REINSTALL,
    State,
    StoredWeights,
    artifact_files,
    bundled_file,
    is_bundled,
    lock,
    state_of,
    stored,
)
from mfcli.models.preprocess import PreprocessPlan
from mfcli.models.registry import Pretraining, Variant
from mfcli.results import Label, Progress
from mfcli.settings import Settings

if TYPE_CHECKING:
    from onnx import ModelProto

    from mfcli.models.metaformer import MetaFormer

FORMAT_VERSION = 2
"""Raised whenever the graph or the metadata of an artifact changes meaning; older files are then rebuilt."""

MAX_LOGIT_DIFFERENCE = 1e-4
"""Largest difference to torch that an artifact may have, as a share of the logits' standard deviation."""

_METADATA_PREFIX = "mfcli."


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact that was opened and found right.

    Attributes:
        path: the ONNX file.
        variant: the variant's name.
        key: the cache key, see `cache_key`.
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


def ensure(
    variant: Variant,
    weights_file: Path | None,
    settings: Settings,
    progress: Progress = lambda _: None,
    wish: Wish = PLAIN_WISH,
) -> Artifact:
    """Return the ready artifact of a variant: looked up, else built, its weights downloaded first where needed.

    Args:
        variant: the row.
        weights_file: a checkpoint of the user's; None for the variant's own.
        settings: say where artifacts are kept; that folder is not touched for the bundled model.
        progress: told before something that takes long, and how far a download is.
        wish: how the variant's own checkpoint is wanted.

    Raises:
        EngineError: an artifact is to be made, and a package that it takes cannot be loaded.
        ModelError: there are no weights and none can be had, or they are not this variant's.
        OutputError: the artifact cannot be kept.
    """
    if weights_file is None and variant.pretraining is Pretraining.BUNDLED:
        path = bundled_file(f"{variant.name}.onnx")
        bundled = open_artifact(path, variant, None, path.with_suffix(".safetensors"))
        _check_bundled(bundled, wish)
        return bundled
    if weights_file is not None:
        digest = remembered_sha256(weights_file, settings.cache_dir / "digests")
    else:
        check = partial(_try_file, variant, settings, progress)
        if not wish.force and not wish.origin and waits_by_hand(variant, settings):
            take_by_hand(variant, settings, progress, check)
        have = stored(variant, settings)
        if wish == PLAIN_WISH and have and (ready := _ready(variant, have, settings)):
            return ready
        have = obtain(variant, settings, progress, check, wish)
        weights_file, digest = have.path, have.sha256
    path = artifact_path(variant, digest, settings)
    if wish.force:  # without its sidecar an artifact counts as torn
        with contextlib.suppress(OSError):
            path.with_suffix(".json").unlink(missing_ok=True)
    return _open_or_build(variant, weights_file, digest, path, progress)


def _check_bundled(bundled: Artifact, wish: Wish) -> None:
    """It is never fetched, so it can only be asked whether it is the one that is meant."""
    if wish.origin:
        raise UsageError(
            f"{bundled.variant} ships with the package and is taken from nowhere else",
            f"other weights of this model: mf predict --model {bundled.variant} --weights FILE",
        )
    check_digest(
        bundled.variant, bundled.weights_sha256, wish, "it ships with the package: another release has another"
    )


def _try_file(variant: Variant, settings: Settings, progress: Progress, path: Path) -> None:
    """Raise a ModelError for a file that is not the variant's checkpoint: only making its artifact tells."""
    ensure(variant, path, settings, progress)


def _open_or_build(variant: Variant, weights_file: Path, digest: str, path: Path, progress: Progress) -> Artifact:
    key = cache_key(variant, digest)
    try:
        return open_artifact(path, variant, key, weights_file)
    except ModelError:
        _build_once(variant, weights_file, digest, path, progress)
        return open_artifact(path, variant, key, weights_file)


def _ready(variant: Variant, have: StoredWeights, settings: Settings) -> Artifact | None:
    """The good artifact of a checkpoint, which itself may be gone, unless another file is in its place."""
    if state_of(have) is State.OTHER:
        return None
    with contextlib.suppress(ModelError):
        key = cache_key(variant, have.sha256)
        return open_artifact(artifact_path(variant, have.sha256, settings), variant, key, have.path)
    return None


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


def artifact_path(variant: Variant, weights_sha256: str, settings: Settings) -> Path:
    """Return where the artifact of a checkpoint is kept."""
    return settings.cache_dir / "artifacts" / f"{variant.name}-{cache_key(variant, weights_sha256)[:16]}.onnx"


def prepared_artifacts(variant: Variant, settings: Settings) -> list[Artifact]:
    """Return the good artifacts of a variant on this machine: the bundled one, and those in the cache by name."""
    bundled = variant.pretraining is Pretraining.BUNDLED
    paths = [bundled_file(f"{variant.name}.onnx")] if bundled else []
    with contextlib.suppress(UsageError):  # nobody knows where the cache is
        paths += [path for name, path in artifact_files(settings) if name == variant.name]
    found = []
    for path in paths:
        with contextlib.suppress(ModelError):
            found.append(open_artifact(path, variant, None, None))
    return found


def cache_key(variant: Variant, weights_sha256: str, half_weights: bool = False) -> str:
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
        fields = {name: json.loads(metadata[_METADATA_PREFIX + name]) for name in _FIELDS}
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
            plan=PreprocessPlan.from_json(metadata[_METADATA_PREFIX + "preprocess"]),
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


def _build_once(variant: Variant, weights_file: Path, digest: str, path: Path, progress: Progress) -> None:
    with lock(path.with_suffix(".lock"), f"another process that prepares {variant.name}", progress):
        try:
            open_artifact(path, variant, cache_key(variant, digest), weights_file)
        except ModelError:  # nobody else has built it meanwhile
            progress(f"preparing {variant.name} (once for these weights)")
            build(variant, weights_file, digest, path)


def build(
    variant: Variant,
    weights_file: Path,
    weights_sha256: str,
    path: Path,
    *,
    labels: tuple[Label, ...] | None = None,
    half_weights: bool = False,
) -> None:
    """Make the artifact of a checkpoint at `path`, with its sidecar; imports torch and timm.

    Args:
        variant: the row.
        weights_file: the checkpoint.
        weights_sha256: its digest.
        path: the ONNX file to write; it appears whole or not at all.
        labels: names of the classes; None for the row's, or for numbers where the head has another size.
        half_weights: store the weights rounded to float16; the arithmetic stays float32.

    Raises:
        EngineError: a package that it takes cannot be loaded.
        ModelError: the checkpoint is not this variant's, has another digest, or the graph's logits differ from torch's.
        OutputError: `path` cannot be written.
    """
    from mfcli.models.checkpoint import load_checkpoint, need_packages
    from mfcli.models.preprocess import plan_for

    need_packages("onnx", "onnxruntime")
    loaded = load_checkpoint(weights_file, variant, weights_sha256)
    if half_weights:
        loaded.model.half().float()
    proto = _export(loaded.model, variant, half_weights)
    fields = {
        "format_version": FORMAT_VERSION,
        "variant": variant.name,
        "key": cache_key(variant, weights_sha256, half_weights),
        "weights_sha256": weights_sha256,
        "source_url": variant.url,
        "labels": [(label.wnid, label.name) for label in labels or _labels(variant, loaded.num_classes)],
        "versions": _versions(),
        "check": _check(proto, loaded.model, variant),
        "preprocess": asdict(plan_for(variant)),
    }
    for name, value in fields.items():
        proto.metadata_props.add(key=_METADATA_PREFIX + name, value=json.dumps(value, sort_keys=True))
    try:
        _write(proto, path)
    except OSError as error:
        raise unwritable(path.parent, error) from error


def _labels(variant: Variant, num_classes: int) -> tuple[Label, ...]:
    from mfcli.models.labels import imagenet_labels, numbered_labels

    if num_classes != variant.num_classes:
        return numbered_labels(num_classes)
    if variant.pretraining is Pretraining.BUNDLED:
        return open_artifact(bundled_file(f"{variant.name}.onnx"), variant, None, None).labels
    return imagenet_labels(num_classes)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("mfcli", "torch", "timm", "onnx", "onnxruntime")}


def _export(model: "MetaFormer", variant: Variant, half_weights: bool) -> "ModelProto":
    from mfcli.artifact.graph import write_graph

    return write_graph(model, variant.input_size, half_weights=half_weights)


def _check(proto: "ModelProto", model: "MetaFormer", variant: Variant) -> dict[str, float]:
    """Compare the graph's logits with torch's at batch 1 and 3; return the largest difference over the spread."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    differences = {}
    for batch in (1, 3):
        pixels = torch.randn(batch, *variant.input_size, generator=generator)
        with torch.inference_mode():
            expected = model(pixels)
        (logits,) = session.run(["logits"], {"input": pixels.numpy()})
        if not expected.isfinite().all():
            raise ModelError(
                f"with these weights {variant.name} computes infinities or what is no number",
                "the file may be damaged, or its training may have diverged",
            )
        share = 0.01 if model.num_classes > 1 else 1.0  # one logit has no spread of its own
        spread = max(float(expected.std(correction=0)), share * float(expected.abs().mean()), 1e-6)
        difference = float((torch.from_numpy(logits) - expected).abs().max()) / spread
        if difference > MAX_LOGIT_DIFFERENCE:
            raise ModelError(
                f"the graph of {variant.name} differs from torch by {difference:.2g} of the logits' spread at batch"
                f" {batch}; at most {MAX_LOGIT_DIFFERENCE:g} is accepted",
                "please report it with what mf --version says and the versions of torch and onnxruntime",
            )
        differences[f"batch_{batch}"] = difference
    return differences


def _write(proto: "ModelProto", path: Path) -> None:
    """Write graph and sidecar beside their targets and rename them, the sidecar last: it says that all is there."""
    data = proto.SerializeToString()
    sidecar: dict[str, Any] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    write_atomically(path, data)
    if sha256_of(path) != sidecar["sha256"]:
        raise OutputError(f"{path} reads back differently than it was written", "check the disk")
    if not is_bundled(path):
        sidecar["mtime_ns"] = path.stat().st_mtime_ns
    write_atomically(path.with_suffix(".json"), json.dumps(sidecar).encode())
