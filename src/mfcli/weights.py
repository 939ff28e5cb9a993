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
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mfcli.errors import ModelError, OutputError
from mfcli.files import remembered_sha256, sha256_of, write_atomically
from mfcli.results import Progress
from mfcli.settings import Settings
from mfcli.variants import HUB, Variant, WeightsSource

_PACKAGE_DIR = Path(__file__).parent
_HUB_URL = re.compile(rf"{re.escape(HUB)}/(?P<repository>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def bundled_file(name: str) -> Path:
    """Return the path of a file that ships with the package: in the package, or in a checkout's weights/ folder.

    Raises:
        ModelError: it is in neither place, so the installation is incomplete.
    """
    for folder in (_PACKAGE_DIR / "weights", _PACKAGE_DIR.parent.parent / "weights"):
        if (folder / name).is_file():
            return folder / name
    raise ModelError(
        f"the bundled file {name} is missing from this installation", "pip install --force-reinstall mfcli"
    )


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
    """

    path: Path
    sha256: str
    size_bytes: int
    url: str | None
    etag: str | None
    commit: str | None
    date: str

    @property
    def is_here(self) -> bool:
        """Whether the checkpoint is there, as long as it was; digests are checked when it arrives and on request."""
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
    """

    force: bool = False
    origin: str | None = None
    expect_sha256: str | None = None


def folder_of(variant: Variant, settings: Settings) -> Path:
    """Return the folder of a row's checkpoint."""
    return settings.cache_dir / "checkpoints" / variant.name


def place_by_hand(variant: Variant, settings: Settings) -> Path:
    """Return where a checkpoint that was carried by hand is found."""
    return folder_of(variant, settings) / variant.sources[0].file_name


def stored(variant: Variant, settings: Settings) -> StoredWeights | None:
    """Return what the cache knows of a row's checkpoint, be it there or pruned; the one that is there first."""
    known = [read_sidecar(path) for path in sorted(folder_of(variant, settings).glob("*.json"))]
    return max((k for k in known if k), key=lambda k: (k.is_here, k.date), default=None)


def checkpoint_files(settings: Settings) -> list[Path]:
    """Return the checkpoints in the cache; each lies in the folder of its row."""
    found = sorted((settings.cache_dir / "checkpoints").glob("*/*"))
    return [path for path in found if path.suffix != ".json" and path.name != "lock" and path.name[0] != "."]


def artifact_files(settings: Settings) -> list[tuple[str, Path]]:
    """Return what is made of checkpoints in the cache, good or not, with the name of its row."""
    found = sorted((settings.cache_dir / "artifacts").glob("*.onnx"))
    return [(path.stem.rpartition("-")[0], path) for path in found if path.name[0] != "."]


def read_sidecar(path: Path) -> StoredWeights | None:
    """Read a sidecar; None for one that is damaged."""
    try:
        fields = json.loads(path.read_bytes())
        return StoredWeights(path=path.with_suffix(""), **fields)
    except (OSError, ValueError, TypeError):
        return None


PLAIN_WISH = Wish()


def is_address(origin: str) -> bool:
    """Return whether an origin is an address rather than a file."""
    return "://" in origin


def discard(variant: Variant, settings: Settings) -> None:
    """Delete a row's checkpoint and what is known of it, because it turned out to be another model's."""
    have = stored(variant, settings)
    if have:
        have.path.unlink(missing_ok=True)
        have.path.with_name(f"{have.path.name}.json").unlink(missing_ok=True)


def obtain(variant: Variant, settings: Settings, progress: Progress, wish: Wish = PLAIN_WISH) -> StoredWeights:
    """Return a row's checkpoint, from the cache, from another program's cache, or downloaded and verified.

    Several processes that ask at once wait for the first.

    Raises:
        ModelError: it is not here and cannot be had: offline, no source has it, or its digest is another.
        OutputError: the cache cannot be written.
    """
    have = stored(variant, settings)
    if have and have.is_here and wish == PLAIN_WISH:
        return have
    with lock(folder_of(variant, settings) / "lock", f"another process that fetches {variant.name}", progress):
        have = stored(variant, settings)
        if have and have.is_here and not wish.force and not wish.origin:
            _check_expected(have, wish)
            return have
        return _obtain(variant, settings, progress, wish)


def _check_expected(have: StoredWeights, wish: Wish) -> None:
    if wish.expect_sha256 and wish.expect_sha256.lower() != have.sha256:
        raise ModelError(
            f"{have.path} has SHA-256 {have.sha256}, but --expect-sha256 says {wish.expect_sha256.lower()}",
            "fetch it again: add --force",
        )


def _obtain(variant: Variant, settings: Settings, progress: Progress, wish: Wish) -> StoredWeights:
    if wish.origin and not is_address(wish.origin):
        return _adopt(variant, settings, Path(wish.origin), _expected(wish), copy=True)
    sources = (WeightsSource(wish.origin),) if wish.origin else variant.sources
    if not wish.force and not wish.origin and (found := _already_here(variant, settings, progress, wish)):
        return found
    if settings.offline:
        raise ModelError(
            f"the weights of {variant.name} are not on this machine, and offline none are fetched",
            f"with a network: mf download {variant.name}; or place the file at {place_by_hand(variant, settings)}",
        )
    return _first_that_delivers(variant, sources, settings, progress, wish)


def _first_that_delivers(
    variant: Variant, sources: tuple[WeightsSource, ...], settings: Settings, progress: Progress, wish: Wish
) -> StoredWeights:
    from mfcli.remote import SourceError, UnreachableError

    failures = []
    for source in sources:
        try:
            return _download(variant, source, settings, progress, wish)
        except UnreachableError as error:
            raise ModelError(
                error.message, f"what has arrived is kept; go on with: mf download {variant.name}"
            ) from error
        except SourceError as error:
            failures.append(error.message)
            if len(sources) > 1:
                progress(error.message)
    raise ModelError(
        f"no source delivers {variant.name}: {'; '.join(failures)}",
        f"carry the file by hand: mf download {variant.name} --from FILE",
    )


def _expected(wish: Wish, **others: str | None) -> dict[str, str]:
    return {
        origin: digest
        for origin, digest in {"--expect-sha256": wish.expect_sha256, **others}.items()
        if digest is not None
    }


def _download(
    variant: Variant, source: WeightsSource, settings: Settings, progress: Progress, wish: Wish
) -> StoredWeights:
    from mfcli.download import fetch

    url = at_endpoint(source.url, settings)
    record = settings.cache_dir / "known" / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"
    expected = _expected(wish, **{"this release": source.sha256})
    if not expected:
        expected = _expected(wish, **{"the first download": _recorded(record)})
    fetched = fetch(
        url,
        settings.cache_dir / "partial",
        expected_sha256=expected,
        max_bytes=max_checkpoint_bytes(variant),
        name=variant.name,
        progress=progress,
    )
    if fetched.remote.sha256 is None:  # nobody vouches for it: what came first is what must come ever after
        write_atomically(record, json.dumps({"url": url, "sha256": fetched.sha256}).encode())
    name = _safe_name(source.file_name)
    return _keep(
        folder_of(variant, settings) / name,
        fetched.path.replace,
        {"url": url, "etag": fetched.remote.etag, "commit": fetched.remote.commit, "sha256": fetched.sha256},
    )


def at_endpoint(url: str, settings: Settings) -> str:
    """Return an address on the hub with the endpoint that is set in the hub's place; others stay."""
    if settings.endpoint and url.startswith(f"{HUB}/"):
        return settings.endpoint.rstrip("/") + url.removeprefix(HUB)
    return url


def max_checkpoint_bytes(variant: Variant) -> int:
    """Return a size that no checkpoint of a row reaches: four times its parameters in float32, for trainers' states."""
    return 16 * variant.params + (1 << 24)


def _safe_name(name: str) -> str:
    """A file name that stays in its folder, whatever an address ends with."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")
    return name if name and not name.endswith((".json", ".lock")) else f"{name}.checkpoint"


def _recorded(record: Path) -> str | None:
    try:
        digest = json.loads(record.read_bytes())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest if isinstance(digest, str) else None


def _already_here(variant: Variant, settings: Settings, progress: Progress, wish: Wish) -> StoredWeights | None:
    """The checkpoint placed by hand, or in the caches of Hugging Face's client and torch.hub, if it proves right."""
    for source in variant.sources:
        by_hand = folder_of(variant, settings) / source.file_name
        for path, digest in (*_placed(by_hand), *_in_other_caches(source, settings)):
            expected = _expected(wish, **{"this release": source.sha256, "the note beside it": digest})
            try:
                if expected or path == by_hand or _is_whole_zip(path):
                    found = _adopt(variant, settings, path, expected, copy=path != by_hand)
                    progress(f"found the weights of {variant.name} in {path}")
                    return found
            except ModelError as error:
                progress(f"not used: {error.message}")
    return None


def _placed(path: Path) -> list[tuple[Path, str | None]]:
    """A checkpoint in its place, and the digest that its sidecar, if it has one, remembers."""
    sidecar = read_sidecar(path.with_name(f"{path.name}.json"))
    return [(path, sidecar.sha256 if sidecar else None)] if path.is_file() else []


def _in_other_caches(source: WeightsSource, settings: Settings) -> Iterator[tuple[Path, str | None]]:
    """Files that other programs fetched from a source, with the digest that they keep with it."""
    match = _HUB_URL.fullmatch(source.url)
    if match and settings.hub_cache_dir:
        repository = "models--" + match["repository"].replace("/", "--")
        for path in settings.hub_cache_dir.expanduser().glob(f"{repository}/snapshots/*/{match['path']}"):
            blob = path.resolve().name  # the hub's client names a large file by its digest
            if _SHA256.fullmatch(blob):
                yield path, blob
    if settings.torch_hub_dir and source.file_name != "model.safetensors":
        path = settings.torch_hub_dir.expanduser() / source.file_name
        if path.is_file():
            yield path, None


def _is_whole_zip(path: Path) -> bool:
    """Whether a .pth, which is a ZIP archive, has the checksums that it says."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return False


def _adopt(
    variant: Variant, settings: Settings, path: Path, expected: Mapping[str, str], *, copy: bool
) -> StoredWeights:
    """Take a file of this machine for a row's checkpoint, after its digest was compared."""
    digest = remembered_sha256(path, settings.cache_dir / "digests")
    for origin, value in expected.items():
        if value.lower() != digest:
            raise ModelError(
                f"{path} has SHA-256 {digest}, but {origin} says {value.lower()}", "it is another file: fetch it again"
            )
    fields = {"url": None, "etag": None, "commit": None, "sha256": digest}
    if not copy:
        return _keep(path, lambda _: None, fields)

    def bring(target: Path) -> None:
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.copyfile(path, partial)
            if sha256_of(partial) != digest:
                raise ModelError(f"{path} changed while it was copied", "run the same command again")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    name = "model.safetensors" if path.suffix == ".safetensors" else f"{variant.name}.pth"
    return _keep(folder_of(variant, settings) / name, bring, fields)


def _keep(target: Path, bring: Callable[[Path], object], fields: dict[str, Any]) -> StoredWeights:
    """Bring a verified checkpoint to its place, write its sidecar, and drop other checkpoints of the row."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        bring(target)
        kept = StoredWeights(
            path=target,
            size_bytes=target.stat().st_size,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            **fields,
        )
        sidecar = {name: value for name, value in asdict(kept).items() if name != "path"}
        write_atomically(target.with_name(f"{target.name}.json"), json.dumps(sidecar).encode())
        for other in target.parent.iterdir():
            if other.name not in (target.name, f"{target.name}.json", "lock"):
                other.unlink()
    except OSError as error:
        raise unwritable(target.parent, error) from error
    return kept


def unwritable(folder: Path, error: OSError) -> OutputError:
    """Return the error that says that the cache cannot be written."""
    return OutputError(
        f"cannot write to the cache {folder}: {error.strerror or error}",
        "free some space (mf cache prune), or name another folder: MF_CACHE_DIR=DIR",
    )


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
