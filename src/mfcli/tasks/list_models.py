"""Choose rows of the registry."""

import fnmatch
from dataclasses import dataclass

from mfcli.errors import ModelError
from mfcli.variants import Family, Pretraining, Variant, list_variants


@dataclass(frozen=True, slots=True)
class ModelFilter:
    """Which rows are wanted; None, or nothing, wants all.

    Attributes:
        pattern: a part of a name or alias; with wildcards, a glob over names, or, with a dot in it, over timm's.
        family: the token mixer's family.
        input_size: height and width in pixels.
        pretraining: what the checkpoint was trained on.
    """

    pattern: str | None = None
    family: Family | None = None
    input_size: int | None = None
    pretraining: Pretraining | None = None

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
        pattern = self.pattern.lower()
        if not any(wildcard in pattern for wildcard in "*?["):
            return any(pattern in name for name in (variant.name, *variant.aliases))
        name = variant.timm_name if "." in pattern else variant.name
        return name is not None and fnmatch.fnmatchcase(name, pattern)


def list_models(wanted: ModelFilter) -> tuple[Variant, ...]:
    """Return the rows that are wanted, in the registry's order.

    Raises:
        ModelError: there is none.
    """
    found = tuple(variant for variant in list_variants() if wanted.wants(variant))
    if not found:
        raise ModelError("no model matches", "all of them: mf list-models")
    return found
