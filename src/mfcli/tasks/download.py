"""Fetch checkpoints and prepare their artifacts, without predicting anything."""

import contextlib
import os
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from mfcli.artifact.ensure import ensure
from mfcli.errors import MfError, ModelError, OutputError, UsageError
from mfcli.files import remembered_sha256
from mfcli.hub.acquire import Wish, candidates, check_digest, is_address, not_here, sources_of, waits_by_hand
from mfcli.hub.bundled import bundled_file
from mfcli.hub.cache import StoredWeights, is_intact, place_by_hand, stored
from mfcli.models.registry import Variant, find_variant, is_glob, list_variants
from mfcli.results import Progress
from mfcli.settings import Settings


class Status(StrEnum):
    """How it went with one model; WANTED is what a dry run says of one that would be fetched."""

    READY = "ready"
    WANTED = "wanted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Downloaded:
    """One model that was asked for.

    Attributes:
        name: the row.
        status: how it went.
        size_bytes: of the checkpoint; None where it is not known.
        sha256: of the checkpoint; None where it is not known.
        path: where the checkpoint is, or would be.
        url: where it is from, or would be from.
        error: what went wrong, None if nothing did.
    """

    name: str
    status: Status
    size_bytes: int | None
    sha256: str | None
    path: str
    url: str | None
    error: MfError | None = None


def choose(names: list[str]) -> list[Variant]:
    """Return the rows that names and globs mean, each once, in the registry's order within a glob.

    Raises:
        ModelError: a name is unknown, or a glob matches nothing.
    """
    chosen: dict[str, Variant] = {}
    for name in names:
        if is_glob(name):
            found = [v for v in list_variants() if v.sources and v.is_meant_by(name)]
            if not found:
                raise ModelError(f"no model matches {name!r}", "all of them: mf list-models")
        else:
            found = [find_variant(name)]
        chosen |= {variant.name: variant for variant in found}
    return list(chosen.values())


def download(names: list[str], settings: Settings, wish: Wish, progress: Progress) -> list[Downloaded]:
    """Make every model that is named ready to predict; one that fails does not stop the others.

    Raises:
        ModelError: a name is unknown.
        UsageError: one origin or digest is given for several models.
    """
    wish = replace(wish, keep=True)
    return [_download(variant, settings, wish, progress) for variant in _choose_for(names, wish)]


def _choose_for(names: list[str], wish: Wish) -> list[Variant]:
    variants = choose(names)
    if len(variants) > 1 and (wish.origin or wish.expect_sha256):
        raise UsageError("--from and --expect-sha256 are about one model", "name one model")
    return variants


def _download(variant: Variant, settings: Settings, wish: Wish, progress: Progress) -> Downloaded:
    try:
        artifact = ensure(variant, None, settings, progress, wish)
    except (ModelError, OutputError) as error:
        place = place_by_hand(variant, settings) if variant.sources else bundled_file(f"{variant.name}.onnx")
        origin = _origin(variant, settings, wish)
        return Downloaded(variant.name, Status.FAILED, None, None, str(place), origin, error)
    have = stored(variant, settings) if variant.sources else None
    if have is None:  # the bundled model
        return Downloaded(
            variant.name, Status.READY, artifact.size_bytes, artifact.weights_sha256, str(artifact.path), None
        )
    return Downloaded(variant.name, Status.READY, have.size_bytes, have.sha256, str(have.path), have.url)


def _origin(variant: Variant, settings: Settings, wish: Wish) -> str | None:
    """Where a checkpoint would first be taken from, without secrets."""
    from mfcli.http import shown

    if wish.origin and not is_address(wish.origin):
        return os.path.realpath(wish.origin)
    with contextlib.suppress(UsageError):  # offline, nobody needs MF_ENDPOINT to be an address
        return next((shown(url) for _, url in sources_of(variant, settings, wish)), None)
    return None


def plan(names: list[str], settings: Settings, wish: Wish, progress: Progress) -> list[Downloaded]:
    """Return what `download` would do; asks servers for sizes, unless offline, and fetches nothing.

    Raises:
        ModelError: a name is unknown.
        UsageError: one origin or digest is given for several models.
    """
    return [_plan(variant, settings, wish, progress) for variant in _choose_for(names, wish)]


def _plan(variant: Variant, settings: Settings, wish: Wish, progress: Progress) -> Downloaded:
    if not variant.sources:
        return _download(variant, settings, wish, progress)
    have = stored(variant, settings)
    place = str(place_by_hand(variant, settings))
    if wish.origin and not is_address(wish.origin):
        return _plan_copy(variant, settings, wish, Path(wish.origin), place)
    if not wish.origin and not wish.force:
        good = have if have and is_intact(have) else None
        for candidate in candidates(variant, settings, wish):
            if good and not (waits_by_hand(variant, settings) and str(candidate.path) == place):
                continue
            copy = _plan_copy(variant, settings, wish, candidate.path, place)
            if copy.status is Status.WANTED and {copy.sha256} >= {v.lower() for v in candidate.expected.values()}:
                return copy
        if good:
            return _plan_nothing(variant, good, wish)
    if settings.offline:
        origin = _origin(variant, settings, wish)
        return Downloaded(variant.name, Status.FAILED, None, None, place, origin, not_here(variant, settings, wish))
    return _plan_download(variant, settings, wish, progress, place)


def _plan_nothing(variant: Variant, have: StoredWeights, wish: Wish) -> Downloaded:
    ready = Downloaded(variant.name, Status.READY, have.size_bytes, have.sha256, str(have.path), have.url)
    try:
        check_digest(str(have.path), have.sha256, wish, "fetch it again: add --force")
    except ModelError as error:
        return replace(ready, status=Status.FAILED, error=error)
    return ready


def _plan_copy(variant: Variant, settings: Settings, wish: Wish, origin: Path, place: str) -> Downloaded:
    shown = os.path.realpath(origin)
    try:
        digest = remembered_sha256(origin, settings.cache_dir / "digests")
        check_digest(str(origin), digest, wish)
        size_bytes = origin.stat().st_size
    except ModelError as error:
        return Downloaded(variant.name, Status.FAILED, None, None, place, shown, error)
    return Downloaded(variant.name, Status.WANTED, size_bytes, digest, place, shown)


def _plan_download(variant: Variant, settings: Settings, wish: Wish, progress: Progress, place: str) -> Downloaded:
    from mfcli.http import SourceError, UnreachableError, open_session, resolve, shown

    failure: ModelError | None = None
    address = variant.url
    for source, url in sources_of(variant, settings, wish):
        address, remote = shown(url), None
        try:
            with open_session() as session:
                remote = resolve(session, url, progress)
            if remote.sha256:
                check_digest(address, remote.sha256, wish)
        except UnreachableError as error:  # the real download goes no further either
            failure = ModelError(error.message, error.hint or "run the same command again")
            break
        except SourceError as error:
            failure = ModelError(error.message, f"carry the file by hand: mf download {variant.name} --from FILE")
        except ModelError as error:
            said = (remote.size_bytes, remote.sha256) if remote else (None, None)
            return Downloaded(variant.name, Status.FAILED, *said, place, address, error)
        else:
            path = str(Path(place).with_name(source.file_name)) if source in variant.sources else place
            return Downloaded(variant.name, Status.WANTED, remote.size_bytes, remote.sha256, path, address)
    return Downloaded(variant.name, Status.FAILED, None, None, place, address, failure)
