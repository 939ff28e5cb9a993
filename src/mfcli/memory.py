"""How much memory is there, and is the process short of it?

A lack can be told only where a limit makes allocations fail (ulimit -v); elsewhere the system ends a process that takes
too much.
"""

import contextlib
import mmap
import re
import resource
from collections.abc import Iterator
from pathlib import Path

from mfcli.settings import list_cgroups

_FIRST_BYTES = 2**24
"""What decoding takes besides the pixels."""
_ARENA_MAX = -8
"""A parameter of mallopt, as malloc.h numbers it."""


def is_memory_limited() -> bool:
    """Return whether allocations can fail; otherwise the system ends a process that takes too much."""
    return any(
        resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    )


def share_arena() -> None:
    """Let all threads allocate from one arena, where a limit counts addresses.

    The GNU C library otherwise reserves 64 MiB of addresses, or 128, for each thread that allocates.
    """
    import ctypes  # takes 3 ms, and few have such a limit

    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def has_free_memory(size_bytes: int) -> bool:
    """Return whether this many bytes can be allocated now, and some more."""
    try:
        mmap.mmap(-1, _FIRST_BYTES + size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, OverflowError):
        return False
    return True


def available_bytes(cgroup_root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> int | None:
    """Return the bytes that this process may still take, by the machine, its control group and its own limit.

    Args:
        cgroup_root: where the control groups are mounted.
        proc: where the files of the system about processes are.

    Returns:
        None where nothing is known, as on macOS.
    """
    return min(_list_available(cgroup_root, proc), default=None)


def _list_available(cgroup_root: Path, proc: Path) -> Iterator[int]:
    with contextlib.suppress(OSError):
        if found := re.search(r"MemAvailable:\s+(\d+)", (proc / "meminfo").read_text()):
            yield int(found[1]) << 10
    own = proc / "self" / "cgroup"
    for folder in list_cgroups(cgroup_root, own):
        yield from _read_room(folder, "memory.max", "memory.current", "inactive_file")
    for folder in list_cgroups(cgroup_root / "memory", own, ":memory:"):  # version 1
        yield from _read_room(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError):
            pages = int((proc / "self" / "statm").read_text().split()[0])
            yield max(0, limit - pages * resource.getpagesize())


def _read_room(folder: Path, limit: str, usage: str, cache: str) -> Iterator[int]:
    """Yield the bytes that a control group has left, counting what the system would drop of files it has read."""
    with contextlib.suppress(OSError, ValueError):  # no limit at this level, which reads "max"
        room = int((folder / limit).read_text()) - int((folder / usage).read_text())
        found = re.search(rf"^{cache} (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
        yield max(0, room + (int(found[1]) if found else 0))
