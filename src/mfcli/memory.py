"""Is the process short of memory? It can be told only where a limit makes allocations fail (ulimit -v)."""

import resource

_FIRST_BYTES = 2**24
"""What decoding takes besides the pixels."""


def is_memory_limited() -> bool:
    """Return whether allocations can fail; otherwise the system ends a process that takes too much."""
    return any(
        resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    )


def has_free_memory(size_bytes: int) -> bool:
    """Return whether this many bytes can be allocated now, and some more."""
    try:
        return bool(bytearray(_FIRST_BYTES + size_bytes))
    except MemoryError:
        return False
