"""Choose rows of the registry."""

from dataclasses import dataclass

from mfcli.errors import ModelError, UsageError
from mfcli.files import is_file, is_glob
from mfcli.hub.bundled import bundled_file
from mfcli.hub.cache import find_stored_weights
from mfcli.models.registry import Family, Pretraining, Variant, list_variants
from mfcli.settings import Settings


@dataclass(frozen=True, slots=True)
class ModelFilter:
    """Which rows are wanted; None, or nothing, wants all.

    Attributes:
        pattern: a part of a name or alias; with wildcards, a glob over names, or, with a dot in it, over timm's.
        family: the token mixer's family.
        input_size: height and width in pixels.
        pretraining: what the checkpoint was trained on.
        downloaded: only those that are on this machine.
    """

    pattern: str | None = None
    family: Family | None = None
    input_size: int | None = None
    pretraining: Pretraining | None = None
    downloaded: bool = False

    def wants(self, variant: Variant) -> bool:
        """Whether a row is one of them."""
        return (
            self._matches(variant)
            and self.family in (None, variant.family)
            and self.input_size in (None, variant.input_size[1])
            and self.pretraining in (None, variant.pretraining)
        )

    def _matches(self, variant: Variant) -> bool:
        if self.pattern is None:
            return True
        if is_glob(self.pattern):
            return variant.matches(self.pattern)
        return any(self.pattern.lower() in name for name in (variant.name, *variant.aliases))


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A row, and how many bytes of it, checkpoint and artifacts, are on this machine."""

    variant: Variant
    size_bytes: int


def list_models(wanted: ModelFilter, settings: Settings) -> tuple[ListedModel, ...]:
    """Return the rows that are wanted, in the registry's order.

    Raises:
        ModelError: there is none.
    """
    sizes = _sizes_on_disk(settings)
    listed = (ListedModel(v, sizes.get(v.name, 0)) for v in list_variants() if wanted.wants(v))
    found = tuple(model for model in listed if model.size_bytes or not wanted.downloaded)
    if not found:
        raise ModelError("no model matches", "all of them: mf list-models")
    return found


def _sizes_on_disk(settings: Settings) -> dict[str, int]:
    """Bytes of each row's own checkpoint and artifact; artifacts of other weights do not count."""
    sizes = {}
    cache: Settings | None = settings
    try:
        _ = settings.cache_dir
    except UsageError:  # nobody knows where the cache is, so nothing is in it
        cache = None
    for variant in list_variants():
        if variant.pretraining is Pretraining.BUNDLED:
            sizes[variant.name] = bundled_file(f"{variant.name}.onnx").stat().st_size
        elif cache and (have := find_stored_weights(variant, cache)):
            from mfcli.artifact.file import artifact_path  # imports NumPy: only where something was downloaded

            paths = (have.path, artifact_path(variant, have.sha256, cache))
            sizes[variant.name] = sum(path.stat().st_size for path in paths if is_file(path))
    return sizes
