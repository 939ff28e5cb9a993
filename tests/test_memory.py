"""The memory that is left, by the machine and the control groups of both versions."""

from pathlib import Path

import pytest

from mfcli.memory import available_bytes

MIB = 2**20


@pytest.mark.parametrize(
    ("own", "files", "expected_mib"),
    [
        ("0::/a/b", {}, 4096),
        ("0::/a/b", {"a/memory.max": 512 * MIB, "a/memory.current": 300 * MIB}, 232),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": 10 * MIB, "a/memory.current": 99 * MIB}, 0),
        (
            "4:memory:/a\n0::/",
            {"memory/a/memory.limit_in_bytes": 512 * MIB, "memory/a/memory.usage_in_bytes": 300 * MIB},
            252,
        ),
    ],
)
def test_the_smallest_limit_counts(own: str, files: dict[str, object], expected_mib: int, tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(own + "\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9999999 kB\nMemAvailable:    4194304 kB\n")
    for name, value in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
        (path.parent / "memory.stat").write_text(f"inactive_file {20 * MIB}\ntotal_inactive_file {40 * MIB}\n")
    assert available_bytes(tmp_path / "cgroup", tmp_path / "proc") == expected_mib * MIB


def test_nothing_is_known(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, tmp_path) is None
