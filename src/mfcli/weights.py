"""Where weights are: the files that ship with the package, and checkpoints in the cache, downloaded where needed.

Knows nothing of artifacts. A row's checkpoint lies in `checkpoints/<row>/` of the cache, with a sidecar that says where
it came from and what its digest is; the sidecar stays when the checkpoint is pruned.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mfcli.errors import ModelError, OutputError, UsageError
from mfcli.files import (
    ELSEWHERE,
    is_file,
    is_folder,
    listed,
    remembered_sha256,
    sha256_of,
    unwritable,
    write_atomically,
)
from mfcli.results import Progress
from mfcli.settings import Settings
from mfcli.variants import HUB, Variant, WeightsSource

REINSTALL = "install it again, in the checkout: pip install --force-reinstall --no-deps ."
"""What to do about what ships with the package; everything else is made or fetched again."""

_PACKAGE_DIR = Path(__file__).parent
_BUNDLED_DIRS = (_PACKAGE_DIR / "weights", _PACKAGE_DIR.parent.parent / "weights")
_HUB_URL = re.compile(rf"{re.escape(HUB)}/(?P<repository>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_bundled(path: Path) -> bool:
    """Whether a file is one that ships with the package."""
    return path.parent in _BUNDLED_DIRS


def bundled_file(name: str) -> Path:
    """Return the path of a file that ships with the package: in the package, or in a checkout's weights/ folder.

    Raises:
        ModelError: it is in neither place, so the installation is incomplete.
    """
    for folder in _BUNDLED_DIRS:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(f"the bundled file {name} is missing from this installation", REINSTALL)


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A row's checkpoint in the cache.

    Attributes:
        path: where it is, or, when it was pruned, where it was.
        sha256: its digest.
        size_bytes: its size.
        url: where it came from; None for a file carried by hand.
        etag: the server's name for this version.
        commit: the hub's commit.
        date: when it arrived, ISO 8601 in UTC.
        identity: inode and both times of the file when its digest was last known to be this one; empty where unknown.
    """

    path: Path
    sha256: str
    size_bytes: int
    url: str | None
    etag: str | None
    commit: str | None
    date: str
    identity: Sequence[int] = ()

    @property
    def is_here(self) -> bool:
        """Whether there is a file, as long as the checkpoint was; `is_intact` says whether it is the checkpoint."""
        with contextlib.suppress(OSError):
            return self.path.stat().st_size == self.size_bytes
        return False


@dataclass(frozen=True, slots=True)
class Wish:
    """How a checkpoint is wanted, beyond the row.

    Attributes:
        force: fetch it again although it is there.
        origin: an address or a file to take it from, instead of where the row is published.
        expect_sha256: the digest it must have.
        keep: whether the checkpoint itself must be there, not only its artifact.
    """

    force: bool = False
    origin: str | None = None
    expect_sha256: str | None = None
    keep: bool = False


def folder_of(variant: Variant, settings: Settings) -> Path:
    """Return the folder of a row's checkpoint."""
    return settings.cache_dir / "checkpoints" / variant.name


def place_by_hand(variant: Variant, settings: Settings) -> Path:
    """Return where a checkpoint that was carried by hand is found."""
    return folder_of(variant, settings) / variant.sources[0].file_name


def stored(variant: Variant, settings: Settings) -> StoredWeights | None:
    """Return what the cache knows of a row's checkpoint, be it there or pruned; the one that is there first."""
    known = [read_sidecar(path) for path in listed(folder_of(variant, settings), "*.json")]
    return max((k for k in known if k), key=lambda k: (k.is_here, k.date), default=None)


def checkpoint_files(settings: Settings) -> list[Path]:
    """Return the checkpoints in the cache; each lies in the folder of its row."""
    found = listed(settings.cache_dir / "checkpoints", "*/*")
    files = [path for path in found if path.suffix != ".json" and path.name != "lock" and path.name[0] != "."]
    return [path for path in files if not is_folder(path)]


def artifact_files(settings: Settings) -> list[tuple[str, Path]]:
    """Return what is made of checkpoints in the cache, good or not, with the name of its row."""
    found = listed(settings.cache_dir / "artifacts", "*.onnx")
    return [(path.stem.rpartition("-")[0], path) for path in found if path.name[0] != "." and not is_folder(path)]


def sidecar_of(path: Path) -> Path:
    """Return where the sidecar of a checkpoint lies."""
    return path.with_name(f"{path.name}.json")


def read_sidecar(path: Path) -> StoredWeights | None:
    """Read a sidecar; None for one that is damaged."""
    try:
        known = json.loads(path.read_bytes())
        found = {name: known[name] for name in _SIDECAR if name in known}  # other versions may write others
        return StoredWeights(path=path.with_suffix(""), **found | {"identity": list(known.get("identity") or ())})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


_SIDECAR = tuple(field.name for field in fields(StoredWeights) if field.name != "path")

PLAIN_WISH = Wish()


def is_address(origin: str) -> bool:
    """Return whether an origin is an address rather than a file."""
    return "://" in origin


Check = Callable[[Path], object]
"""Raises a ModelError for a file that is not the row's checkpoint."""


def obtain(
    variant: Variant, settings: Settings, progress: Progress, check: Check, wish: Wish = PLAIN_WISH
) -> StoredWeights:
    """Return a row's checkpoint, from the cache, from another program's cache, or downloaded and verified.

    A file whose digest nobody vouches for is kept only after `check` let it pass. Several processes that ask at once
    wait for the first.

    Raises:
        EngineError: from `check`.
        ModelError: it is not here and cannot be had: offline, no source has it, or its digest is another.
        OutputError: the cache cannot be written.
        UsageError: the wish's origin, or the endpoint, is no address.
    """
    if ready := _ready(variant, settings, wish):
        return ready
    folder = folder_of(variant, settings)
    try:
        with lock(folder / "lock", f"another process that fetches {variant.name}", progress):
            return _ready(variant, settings, wish) or _obtain(variant, settings, progress, check, wish)
    except OutputError as error:
        have = stored(variant, settings)
        if settings.offline and not wish.origin and next(candidates(variant, settings, wish), None) is None:
            raise not_here(variant, settings) from error
        if have and not _is_writable(folder) and state_of(have) is State.OTHER:
            raise ModelError(
                f"{have.path} is not the file that was prepared, and {error.message}", ELSEWHERE
            ) from error
        raise


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def _ready(variant: Variant, settings: Settings, wish: Wish) -> StoredWeights | None:
    """The checkpoint that is here, if it is what is wished for."""
    have = stored(variant, settings)
    if have is None or wish.force or wish.origin or not is_intact(have):
        return None
    check_digest(str(have.path), have.sha256, wish, "fetch it again: add --force")
    return have


def take_by_hand(variant: Variant, settings: Settings, progress: Progress, check: Check) -> None:
    """Take a file that was placed by hand beside another checkpoint of the row, if it proves right.

    One that does not is said once, and stays where it is.

    Raises:
        OutputError: the cache cannot be written.
    """
    with lock(folder_of(variant, settings) / "lock", f"another process that fetches {variant.name}", progress):
        if waits_by_hand(variant, settings):
            candidate = next(candidates(variant, settings, PLAIN_WISH))
            try:
                _adopt(variant, settings, candidate.path, candidate.expected, check, copy=False)
            except ModelError as error:
                progress(f"not used: {error.message}")
                _refuse(candidate.path)
            else:
                progress(f"found the weights of {variant.name} in {candidate.path}")


def waits_by_hand(variant: Variant, settings: Settings) -> bool:
    """Whether a file was placed by hand beside another checkpoint of the row, and has not been tried, but can be."""
    place = place_by_hand(variant, settings)
    if not is_file(place) or is_file(sidecar_of(place)) or not _is_writable(place.parent):
        return False
    with contextlib.suppress(OSError, ValueError):
        if json.loads(_refusal_of(place).read_bytes()) == _identity(place.stat()):
            return False
    return stored(variant, settings) is not None


def _refusal_of(place: Path) -> Path:
    return place.with_name("refused.json")


def _refuse(place: Path) -> None:
    with contextlib.suppress(OSError):
        write_atomically(_refusal_of(place), json.dumps(_identity(place.stat())).encode())


class State(StrEnum):
    """What is in a checkpoint's place: nothing, the file that arrived, another, or one that may not be read."""

    GONE = "gone"
    INTACT = "intact"
    OTHER = "other"
    UNREADABLE = "unreadable"


def state_of(have: StoredWeights) -> State:
    """Look at what is in a checkpoint's place; it is hashed only when it was touched."""
    try:
        status = have.path.stat()
    except FileNotFoundError:
        return State.GONE
    except OSError:
        return State.UNREADABLE
    if status.st_size != have.size_bytes:
        return State.OTHER
    if is_untouched(have) or (_is_copy(status, have) and not _is_writable(have.path.parent)):
        return State.INTACT
    try:
        if sha256_of(have.path) != have.sha256:
            return State.OTHER
    except ModelError:
        return State.UNREADABLE
    _remember_identity(have, _identity(status))
    return State.INTACT


def is_untouched(have: StoredWeights) -> bool:
    """Return whether nobody has touched the file in a checkpoint's place since its digest was last looked at."""
    with contextlib.suppress(OSError):
        return _identity(have.path.stat()) == list(have.identity)
    return False


def is_intact(have: StoredWeights) -> bool:
    """Return whether the file in a checkpoint's place is the one that arrived, and can be read."""
    return state_of(have) is State.INTACT


def _is_copy(status: os.stat_result, have: StoredWeights) -> bool:
    """Whether it is as old to the nanosecond: in a cache that was copied and cannot be written, that must do."""
    return status.st_mtime_ns in have.identity


def _identity(status: os.stat_result) -> list[int]:
    """What another file in the same place has different; the device is not in it, which each machine numbers anew."""
    return [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _remember_identity(have: StoredWeights, identity: list[int]) -> None:
    """So that it is not hashed again; not while another process may be bringing another file."""
    from filelock import FileLock, Timeout

    with (  # a cache that cannot be written costs time, not correctness
        contextlib.suppress(OSError, NotImplementedError, Timeout),
        FileLock(have.path.with_name("lock"), timeout=0),
    ):
        if read_sidecar(sidecar_of(have.path)) == have:
            _write_sidecar(replace(have, identity=identity))


def check_digest(what: str, sha256: str, wish: Wish, hint: str = "it is another file: see --from") -> None:
    """Compare the digest of a file, or of what an address serves, with the one that is wished for.

    Raises:
        ModelError: it is another.
    """
    _compare(what, sha256, _expected(wish), hint)


def _compare(what: str, sha256: str, expected: Mapping[str, str], hint: str) -> None:
    for origin, value in expected.items():
        if value.lower() != sha256:
            raise ModelError(f"{what} has SHA-256 {sha256}, but {origin} says {value.lower()}", hint)


def _obtain(variant: Variant, settings: Settings, progress: Progress, check: Check, wish: Wish) -> StoredWeights:
    if wish.origin and not is_address(wish.origin):
        return _adopt(variant, settings, Path(wish.origin), _expected(wish), check, copy=True)
    unfit: list[str] = []
    if not wish.force and not wish.origin:
        for candidate in candidates(variant, settings, wish):
            try:
                found = _adopt(
                    variant, settings, candidate.path, candidate.expected, check, copy=candidate.is_elsewhere
                )
            except ModelError as error:
                unfit.append(error.message)
                progress(f"not used: {error.message}")
            else:
                progress(f"found the weights of {variant.name} in {candidate.path}")
                return found
    if settings.offline:
        raise not_here(variant, settings, unfit)
    return _first_that_delivers(variant, settings, progress, check, wish)


def not_here(variant: Variant, settings: Settings, unfit: Sequence[str] = ()) -> ModelError:
    """Return the error of a checkpoint that is not here, or only in files that are another, and may not be fetched."""
    place = place_by_hand(variant, settings)
    if unfit:
        return ModelError(
            f"what is on this machine is not the weights of {variant.name}: {'; '.join(unfit)}",
            f"with a network: mf download {variant.name}; or place the right file at {place}",
        )
    return ModelError(
        f"the weights of {variant.name} are not on this machine, and offline none are fetched",
        f"with a network: mf download {variant.name}; or place the file at {place}",
    )


def sources_of(variant: Variant, settings: Settings, wish: Wish) -> list[tuple[WeightsSource, str]]:
    """Return where a checkpoint is fetched from, in order, each with the address that is really asked.

    Raises:
        UsageError: an address is none.
    """
    sources = (WeightsSource(wish.origin),) if wish.origin else variant.sources
    addressed = [(source, at_endpoint(source.url, settings)) for source in sources]
    for _, url in addressed:
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise UsageError(f"{url!r} is not a web address", "it begins with https://; see --from and MF_ENDPOINT")
    return addressed


def _first_that_delivers(
    variant: Variant, settings: Settings, progress: Progress, check: Check, wish: Wish
) -> StoredWeights:
    from mfcli.remote import SourceError, UnreachableError

    failures: list[SourceError] = []
    sources = sources_of(variant, settings, wish)
    for source, url in sources:
        try:
            return _download(variant, source, url, settings, progress, check, wish)
        except UnreachableError as error:
            place = place_by_hand(variant, settings)
            hint = f"the same command again goes on where it stopped; without a network, place the file at {place}"
            raise ModelError(error.message, error.hint or hint) from error
        except SourceError as error:
            failures.append(error)
            if len(sources) > 1:
                progress(error.message)
    hints = dict.fromkeys(error.hint for error in failures if error.hint)
    raise ModelError(
        f"no source delivers {variant.name}: {'; '.join(error.message for error in failures)}",
        "; ".join(hints) or f"carry the file by hand: mf download {variant.name} --from FILE",
    )


def _expected(wish: Wish, **others: str | None) -> dict[str, str]:
    return {
        origin: digest
        for origin, digest in {"--expect-sha256": wish.expect_sha256, **others}.items()
        if digest is not None
    }


def _download(
    variant: Variant, source: WeightsSource, url: str, settings: Settings, progress: Progress, check: Check, wish: Wish
) -> StoredWeights:
    from mfcli.download import fetch
    from mfcli.remote import SourceError, shown

    expected = _expected(wish, **{"this release": source.sha256})
    fetched = fetch(
        url,
        settings.cache_dir / "partial",
        expected_sha256=expected,
        first_sha256=_first_digests(variant, settings).get(_name_of(source.url)),
        max_bytes=max_checkpoint_bytes(variant),
        name=variant.name,
        progress=progress,
    )
    if wish.origin or not (expected or fetched.remote.sha256):  # nobody vouches for it
        try:
            check(fetched.path)
        except ModelError as error:
            fetched.path.unlink(missing_ok=True)
            raise SourceError(f"{shown(url)} is not the checkpoint: {error.message}") from error
    fields = {"url": shown(url), "etag": fetched.remote.etag, "commit": fetched.remote.commit, "sha256": fetched.sha256}
    kept = _keep(_place(variant, settings, source.file_name), fetched.path.replace, fields)
    _remember_first(variant, settings, _name_of(source.url), fetched.sha256)
    return kept


def _place(variant: Variant, settings: Settings, file_name: str) -> Path:
    """Where a checkpoint goes: a name of the row's own, whatever the file was called."""
    own = {source.file_name for source in variant.sources}
    if file_name not in own:
        file_name = "model.safetensors" if file_name.endswith(".safetensors") else f"{variant.name}.pth"
    return folder_of(variant, settings) / file_name


def _name_of(url: str) -> str:
    """What tells an address from others, without its secrets: its query, which may be one, as a digest."""
    from mfcli.remote import shown

    query = url.partition("?")[2]
    return f"{shown(url)}?{hashlib.sha256(query.encode()).hexdigest()[:16]}" if query else shown(url)


def _first_digests(variant: Variant, settings: Settings) -> dict[str, str]:
    """The digest of what first came from each source; it counts where nobody else vouches for a file."""
    try:
        known = json.loads(_first_digests_file(variant, settings).read_bytes())
        return {url: digest for url, digest in known.items() if isinstance(digest, str)}
    except (OSError, ValueError, AttributeError):
        return {}


def _remember_first(variant: Variant, settings: Settings, address: str, digest: str) -> None:
    known = _first_digests(variant, settings) | {address: digest}
    path = _first_digests_file(variant, settings)
    try:
        write_atomically(path, json.dumps(known).encode())
    except OSError as error:
        raise unwritable(path.parent, error) from error


def _first_digests_file(variant: Variant, settings: Settings) -> Path:
    return settings.cache_dir / "known" / f"{variant.name}.json"


def at_endpoint(url: str, settings: Settings) -> str:
    """Return an address on the hub with the endpoint that is set in the hub's place; others stay."""
    if settings.endpoint and url.startswith(f"{HUB}/"):
        return settings.endpoint.rstrip("/") + url.removeprefix(HUB)
    return url


def max_checkpoint_bytes(variant: Variant) -> int:
    """Return a size that no checkpoint of a row reaches: four times its parameters in float32, for trainers' states."""
    return 16 * variant.params + (1 << 24)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file of this machine that may be a row's checkpoint, with the digests it must have, by a word for each."""

    path: Path
    expected: dict[str, str]
    is_elsewhere: bool


def candidates(variant: Variant, settings: Settings, wish: Wish) -> Iterator[Candidate]:
    """What was placed by hand, and what the caches of Hugging Face's client and torch.hub hold."""
    for source in variant.sources:
        by_hand = folder_of(variant, settings) / source.file_name
        for path, digest in (*_placed(by_hand), *_in_other_caches(source, settings)):
            expected = _expected(wish, **{"this release": source.sha256, "the note beside it": digest})
            yield Candidate(path, expected, is_elsewhere=path != by_hand)


def _placed(path: Path) -> list[tuple[Path, str | None]]:
    """A checkpoint in its place, with the digest it had if it was downloaded; one placed by hand may be another now."""
    sidecar = read_sidecar(sidecar_of(path))
    return [(path, sidecar.sha256 if sidecar and sidecar.url else None)] if is_file(path) else []


def _in_other_caches(source: WeightsSource, settings: Settings) -> Iterator[tuple[Path, str | None]]:
    """Files that other programs fetched from a source, with the digest that they keep with it."""
    match = _HUB_URL.fullmatch(source.url)
    if match and settings.hub_cache_dir:
        repository = "models--" + match["repository"].replace("/", "--")
        for path in listed(settings.hub_cache_dir, f"{repository}/snapshots/*/{match['path']}"):
            blob = Path(os.path.realpath(path)).name  # the hub's client names a large file by its digest
            if _SHA256.fullmatch(blob):
                yield path, blob
    if settings.torch_hub_dir and source.file_name != "model.safetensors":
        path = settings.torch_hub_dir / source.file_name
        if is_file(path):
            yield path, None


def _adopt(
    variant: Variant, settings: Settings, path: Path, expected: Mapping[str, str], check: Check, *, copy: bool
) -> StoredWeights:
    """Take a file of this machine for a row's checkpoint, after its digest was compared and it was tried."""
    digest = remembered_sha256(path, settings.cache_dir / "digests")
    _compare(str(path), digest, expected, "it is another file: fetch it again")
    check(path)
    if remembered_sha256(path, settings.cache_dir / "digests") != digest:  # the check takes seconds
        raise ModelError(f"{path} changed while it was prepared", "run the same command again")
    fields = {"url": None, "etag": None, "commit": None, "sha256": digest}
    if not copy:
        return _keep(path, lambda _: None, fields)

    def bring(target: Path) -> None:
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.copyfile(path, partial)
            with partial.open("rb") as copied:
                os.fsync(copied.fileno())
            if sha256_of(partial) != digest:
                raise ModelError(f"{path} changed while it was copied", "run the same command again")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    return _keep(_place(variant, settings, path.name), bring, fields)


def _keep(target: Path, bring: Callable[[Path], object], fields: dict[str, Any]) -> StoredWeights:
    """Bring a verified checkpoint to its place, write its sidecar, and drop other checkpoints of the row."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sidecar_file = sidecar_of(target)
        sidecar_file.unlink(missing_ok=True)  # never the old digest beside the new file
        bring(target)
        status = target.stat()
        kept = StoredWeights(
            path=target,
            size_bytes=status.st_size,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            identity=_identity(status),
            **fields,
        )
        _write_sidecar(kept)
        for other in target.parent.iterdir():
            if other.name not in (target.name, sidecar_file.name, "lock"):
                with contextlib.suppress(OSError):
                    other.unlink()
    except OSError as error:
        raise unwritable(target.parent, error) from error
    return kept


def _write_sidecar(kept: StoredWeights) -> None:
    sidecar = {name: value for name, value in asdict(kept).items() if name != "path"}
    write_atomically(sidecar_of(kept.path), json.dumps(sidecar).encode())


@contextlib.contextmanager
def lock(path: Path, who: str, progress: Progress) -> Iterator[None]:
    """Hold a lock file among processes; says who is waited for.

    Raises:
        OutputError: the lock file cannot be made.
    """
    from filelock import FileLock, Timeout

    held = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=0)
        except Timeout:
            progress(f"waiting for {who}")
            held.acquire()
    except OSError as error:
        raise unwritable(path.parent, error) from error
    try:
        yield
    finally:
        held.release()
