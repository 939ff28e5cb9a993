"""The names of objects in stores, s3://BUCKET/KEY and the like, which every command can tell without a client."""

import re
from pathlib import Path

from mfcli.errors import UsageError
from mfcli.files import url_scheme

SCHEMES = ("s3", "gs", "az")
HUB_SCHEME = "hf"
"""Data sets of the Hugging Face hub, which are read alone; see inputs/hub_datasets.py."""
_JOINED = re.compile(r"([a-z][a-z0-9+.-]+)://?([^/].*)", re.IGNORECASE | re.DOTALL)


def is_store_url(name: str) -> bool:
    """Return whether a name is that of an object, or of all whose keys begin with it, in a store or on the hub."""
    return url_scheme(name) in (*SCHEMES, HUB_SCHEME)


def find_url(path: str | Path) -> str | None:
    """Return the URL that a path is, or was made from, which joins its slashes; None for an ordinary one."""
    match = _JOINED.fullmatch(str(path))
    return f"{match[1].lower()}://{match[2]}" if match else None


def find_store_url(path: str | Path) -> str | None:
    """Return the URL of an object that can be written, likewise; None for any other path."""
    url = find_url(path)
    return url if url is not None and url_scheme(url) in SCHEMES else None


def refuse_addresses(path: str | Path, hint: str = "copy it to a local folder") -> None:
    """Refuse a path that is an address, or was made from one, where only local files are read or written.

    Raises:
        UsageError: it is.
    """
    if url := find_url(path):
        raise UsageError(f"{url}: object stores and addresses are not supported here", hint)


def split_store_url(url: str) -> tuple[str, str]:
    """Return scheme and bucket as `s3://bucket/`, and the key; the bucket of the hub is `hf://datasets/OWNER/NAME/`."""
    scheme, _, rest = url.partition("://")
    depth = 3 if scheme.lower() == HUB_SCHEME else 1
    parts = rest.split("/")
    return f"{scheme.lower()}://{'/'.join(parts[:depth])}/", "/".join(parts[depth:])
