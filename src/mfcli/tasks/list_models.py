"""List the models of the registry that match a filter."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from mfcli.errors import ModelError, UsageError
from mfcli.files import is_file, is_glob
from mfcli.hub.bundled import bundled_file
from mfcli.hub.cache import ModelCache
from mfcli.models.own import MODEL_FILE, list_own_variants
from mfcli.models.registry import Family, Pretraining, Variant, list_variants
from mfcli.settings import Settings


@dataclass(frozen=True, slots=True)
class ModelFilter:
    """A filter of models; None matches all.

    Attributes:
        pattern: a part of a name or alias; with wildcards, a glob over names, or, with a dot in it, over timm's names.
        family: the family.
        input_size: height and width in pixels.
        pretraining: the training data.
        downloaded: only models on this machine.
    """

    pattern: str | None = None
    family: Family | None = None
    input_size: int | None = None
    pretraining: Pretraining | None = None
    downloaded: bool = False

    def matches(self, variant: Variant) -> bool:
        """Return whether the filter matches a variant, wherever its files are."""
        return (
            self._matches_name(variant)
            and self.family in (None, variant.family)
            and self.input_size in (None, variant.input_size[1])
            and self.pretraining in (None, variant.pretraining)
        )

    def _matches_name(self, variant: Variant) -> bool:
        if self.pattern is None:
            return True
        if is_glob(self.pattern):
            return variant.matches(self.pattern)
        return any(self.pattern.lower() in name for name in (variant.name, *variant.aliases))


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model, and the size of its checkpoint and artifact on this machine, 0 if there are none."""

    variant: Variant
    size_bytes: int


def list_models(wanted: ModelFilter, settings: Settings) -> tuple[ListedModel, ...]:
    """Return the models that match, in the registry's order.

    Raises:
        ModelError: none matches.
    """
    sizes = _measure_sizes(settings)
    variants = (*list_variants(), *list_own_variants(settings.models_dir))
    listed = (ListedModel(v, sizes.get(v.reference, 0)) for v in variants if wanted.matches(v))
    found = tuple(model for model in listed if model.size_bytes or not wanted.downloaded)
    if not found:
        pattern = "" if wanted.pattern is None else f" {wanted.pattern!r}"
        raise ModelError(f"no model matches{pattern}", "see mf list-models")
    return found


def _measure_sizes(settings: Settings) -> dict[str, int]:
    """Return the size of each model's own checkpoint and artifact; artifacts of other weights are not included."""
    sizes = {}
    cache_dir: Path | None = None
    with contextlib.suppress(UsageError):  # no cache directory
        cache_dir = settings.cache_dir
    for variant in list_own_variants(settings.models_dir):
        assert variant.folder is not None
        sizes[variant.reference] = (variant.folder / MODEL_FILE).stat().st_size
    for variant in list_variants():
        if variant.pretraining is Pretraining.BUNDLED:
            sizes[variant.name] = bundled_file(f"{variant.name}.onnx").stat().st_size
        elif cache_dir and (have := ModelCache(cache_dir, variant).find()):
            from mfcli.artifact.file import locate_artifact  # imports NumPy: only if something was downloaded

            paths = (have.path, locate_artifact(variant, have.sha256, settings))
            sizes[variant.name] = sum(path.stat().st_size for path in paths if is_file(path))
    return sizes
