"""What a process that decodes pictures gives up: memory beyond a limit, files, programs, the network.

Each measure is taken where the system can: all on Linux 5.13 and later, the limits alone elsewhere. None needs
privileges, and none can be taken back.
"""

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterable
from enum import StrEnum
from functools import partial
from pathlib import Path


class Measure(StrEnum):
    """What a worker process is held to, as `mf doctor` shows it."""

    MEMORY = "memory_limit"
    ENDS = "ends_with_parent"
    PRIVILEGES = "no_new_privileges"
    FILES = "no_files"
    CALLS = "no_programs_or_network"


_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_GREATER_EQUAL, _JUMP_IF_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_CLONE_THREAD = 0x10000
_X32_BIT = 0x40000000
_CLONE3 = 435
_REFUSED_EVERYWHERE = (
    *(424, 434, 438),  # pidfd_send_signal, pidfd_open, pidfd_getfd
    *(425, 426, 427),  # io_uring, which makes calls that no filter sees
)
_REFUSED = {
    # execve execveat fork vfork; socket socketpair connect bind listen accept accept4;
    # kill tkill rt_sigqueueinfo rt_tgsigqueueinfo ptrace process_vm_readv process_vm_writev;
    # bpf userfaultfd perf_event_open keyctl add_key request_key;
    # mount umount2 unshare setns open_by_handle_at
    "x86_64": (
        *(59, 322, 57, 58, 41, 53, 42, 49, 50, 43, 288, 62, 200, 129, 297, 101, 310, 311),
        *(321, 323, 298, 250, 248, 249, 165, 166, 272, 308, 304),
    ),
    "aarch64": (
        *(221, 281, 198, 199, 203, 200, 201, 202, 242, 129, 130, 138, 240, 117, 270, 271),
        *(280, 282, 241, 219, 217, 218, 40, 39, 97, 268, 265),
    ),
}
_CLONE = {"x86_64": 56, "aarch64": 220}
_TGKILL = {"x86_64": 234, "aarch64": 131}
_PRLIMIT = {"x86_64": 302, "aarch64": 261}
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION = 1  # the flag that asks for it
_PATH_BENEATH = 1
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")


def confine(memory_bytes: int) -> list[Measure]:
    """Give up all that decoding does not need, for good, and return what is in force.

    Code can still be imported, and open files be used.

    Args:
        memory_bytes: what may be allocated from now on.
    """
    with contextlib.suppress(OSError):  # where memory runs out, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    steps: dict[Measure, Callable[[], object]] = {
        Measure.MEMORY: partial(_limit_memory, memory_bytes),
        Measure.ENDS: partial(_prctl, _PR_SET_PDEATHSIG, signal.SIGKILL),
        Measure.PRIVILEGES: partial(_prctl, _PR_SET_NO_NEW_PRIVS, 1),
        Measure.FILES: partial(_allow_reading_only, (sys.prefix, sys.base_prefix, *sys.path, *_LIBRARIES)),
        Measure.CALLS: _refuse_calls,
    }
    taken = []
    for measure, take in steps.items():
        with contextlib.suppress(OSError, KeyError, AttributeError, ValueError):  # not on this system
            take()
            taken.append(measure)
    return taken


def _limit_memory(size_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack
    limit = pages * resource.getpagesize() + size_bytes
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    if ctypes.CDLL(None, use_errno=True).prctl(option, *padded):
        raise OSError(ctypes.get_errno(), "prctl")


def _call(number: int, *arguments: object) -> int:
    result: int = ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "system call")
    return result


def _refuse_calls() -> None:
    """Install a filter that fails system calls which start programs, open connections or reach other processes."""
    machine = platform.machine()
    refused = (*_REFUSED[machine], *_REFUSED_EVERYWHERE)
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_IF_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        *[(_JUMP_IF_GREATER_EQUAL, 0, 1, _X32_BIT), refuse],
        *[(_JUMP_IF_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)],  # the C library then uses clone
    ]
    for number in refused:
        program += [(_JUMP_IF_EQUAL, 0, 1, number), refuse]
    for number, process in ((_TGKILL[machine], os.getpid()), (_PRLIMIT[machine], 0)):  # of this process alone
        program += [(_JUMP_IF_EQUAL, 0, 4, number), (_LOAD, 0, 0, _FIRST_ARGUMENT_AT)]
        program += [(_JUMP_IF_EQUAL, 1, 0, process), refuse, (_RETURN, 0, 0, _ALLOW)]
    program += [
        (_JUMP_IF_EQUAL, 0, 3, _CLONE[machine]),  # threads may be started, processes not
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_JUMP_IF_SET, 1, 0, _CLONE_THREAD),
        refuse,
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    header_buffer = ctypes.create_string_buffer(header, len(header))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header_buffer))


def _allow_reading_only(paths: Iterable[str]) -> None:
    """Refuse to open any file but those below the paths for reading, by Landlock."""
    version = _call(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    rights = 13 + min(version - 1, 2) + (version >= 5)
    handled = struct.pack("=QQQ", (1 << rights) - 1, 0b11, 0b11)[: 8 + 8 * (version >= 4) + 8 * (version >= 6)]
    ruleset = _call(_LANDLOCK_CREATE, handled, ctypes.c_size_t(len(handled)), 0)
    try:
        for path in paths:
            _allow_reading(ruleset, path)
        _call(_LANDLOCK_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow_reading(ruleset: int, path: str) -> None:
    with contextlib.suppress(OSError):  # not there
        beneath = os.open(path or ".", os.O_RDONLY | os.O_CLOEXEC)
        try:
            rights = _READ_FILE | (_READ_FOLDER if Path(path or ".").is_dir() else 0)
            _call(_LANDLOCK_ADD, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, beneath), 0)
        finally:
            os.close(beneath)
