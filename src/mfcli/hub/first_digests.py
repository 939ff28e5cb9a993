"""Digests of first downloads, by address: what a later download must equal if no digest is published for it."""

import hashlib
import json
from pathlib import Path

from mfcli.files import cache_write_error, write_atomically
from mfcli.models.registry import Variant
from mfcli.settings import Settings


def read_first_digest(variant: Variant, url: str, settings: Settings) -> str | None:
    """Return the digest of the first download from an address, None if there was none.

    Args:
        variant: the model.
        url: the address as published or as given, before MF_ENDPOINT is applied.
        settings: locate the cache.
    """
    return _read_digests(_index_path(variant, settings)).get(_url_key(url))


def record_first_digest(variant: Variant, url: str, settings: Settings, sha256: str) -> None:
    """Record the digest of a download that was accepted.

    Args:
        variant: the model.
        url: as for `read_first_digest`.
        settings: locate the cache.
        sha256: the digest.

    Raises:
        OutputError: the cache is not writable.
    """
    path = _index_path(variant, settings)
    try:
        write_atomically(path, json.dumps(_read_digests(path) | {_url_key(url): sha256}).encode())
    except OSError as error:
        raise cache_write_error(path.parent, error) from error


def _index_path(variant: Variant, settings: Settings) -> Path:
    return settings.cache_dir / "known" / f"{variant.name}.json"


def _read_digests(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_bytes())
        return {url: digest for url, digest in known.items() if isinstance(digest, str)}
    except (OSError, ValueError, AttributeError):
        return {}


def _url_key(url: str) -> str:
    """The address without its secrets; its query, which may hold one, as a digest."""
    from mfcli.http import redact_url

    query = url.partition("?")[2]
    return f"{redact_url(url)}?{hashlib.sha256(query.encode()).hexdigest()[:16]}" if query else redact_url(url)
