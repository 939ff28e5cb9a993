"""Local files that may be a model's checkpoint: in the cache, and in those of Hugging Face's client and torch.hub."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mfcli.files import is_file, list_files
from mfcli.hub.cache import checkpoint_folder, read_sidecar, sidecar_path
from mfcli.models.registry import HUB, Variant, WeightsSource
from mfcli.settings import Settings

_HUB_URL = re.compile(rf"{re.escape(HUB)}/(?P<repository>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may be a model's checkpoint.

    Attributes:
        path: the file.
        expected: the digests that it must have, each under the words that an error calls it by.
        is_elsewhere: whether it must be copied into the cache.
    """

    path: Path
    expected: dict[str, str]
    is_elsewhere: bool


def find_candidates(variant: Variant, settings: Settings) -> Iterator[Candidate]:
    """Yield the files that may be a model's checkpoint, those in the cache's own folder first for each source."""
    for source in variant.sources:
        own = checkpoint_folder(variant, settings) / source.file_name
        for path, digest in (*_find_own_file(own), *_search_other_caches(source, settings)):
            expected = published_digest(source) | ({"the recorded digest": digest} if digest else {})
            yield Candidate(path, expected, is_elsewhere=path != own)


def published_digest(source: WeightsSource) -> dict[str, str]:
    """Return the digest that the registry has of a source, if any, under the words that an error calls it by."""
    return {"the published digest": source.sha256} if source.sha256 else {}


def _find_own_file(path: Path) -> list[tuple[Path, str | None]]:
    """Return a checkpoint in the cache with the digest recorded at its download; None if the user placed it there."""
    sidecar = read_sidecar(sidecar_path(path))
    return [(path, sidecar.sha256 if sidecar and sidecar.url else None)] if is_file(path) else []


def _search_other_caches(source: WeightsSource, settings: Settings) -> Iterator[tuple[Path, str | None]]:
    """Yield the files that other programs fetched from a source, with the digests that they record."""
    match = _HUB_URL.fullmatch(source.url)
    if match and settings.hub_cache_dir:
        repository = "models--" + match["repository"].replace("/", "--")
        for path in list_files(settings.hub_cache_dir, f"{repository}/snapshots/*/{match['path']}"):
            blob = Path(os.path.realpath(path)).name  # Hugging Face's client names a large file by its digest
            if _SHA256.fullmatch(blob):
                yield path, blob
    if settings.torch_hub_dir and source.file_name != "model.safetensors":
        path = settings.torch_hub_dir / source.file_name
        if is_file(path):
            yield path, None
