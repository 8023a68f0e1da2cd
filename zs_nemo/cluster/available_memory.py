"""How much memory a run may take: what the machine has to give, or less inside the limits of a container or a job.

This file is also the program that launch/environment.sh asks before an installation: standard library only. Linux only
(it reads /proc).
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Files:
    """Names of a control group's files in one version of Linux's interface."""

    limit: str
    used: str
    reclaimable: tuple[str, ...]
    """Lines of memory.stat: what is counted as used and is given up when it is needed."""


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))
_V2 = _Files("memory.max", "memory.current", ("active_file", "inactive_file", "slab_reclaimable"))


def available_memory(
    machine: Path = Path("/proc/meminfo"),
    membership: Path = Path("/proc/self/cgroup"),
    groups: Path = Path("/sys/fs/cgroup"),
) -> int:
    """Return the bytes that this process and its children may still take before something is swapped or killed.

    The limits are those of ``docker run --memory``, ``sbatch --mem`` and the like. Below them a file that is merely
    cached counts as free, as it does for the machine.
    """
    left = [_left(folder, files) for folder, files in _control_groups(membership, groups)]
    return min([_fields(machine)["MemAvailable:"] * 1024, *(size for size in left if size is not None)])


def _control_groups(membership: Path, groups: Path) -> Iterator[tuple[Path, _Files]]:
    """Yield every control group of this process that may limit memory: its own and all around it."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, files = (groups / "memory", _V1) if controllers else (groups, _V2)
        # In a container the path may be that of the machine, of which nothing but the root is seen.
        names = [name for name in path.split("/") if name]
        for depth in range(len(names), -1, -1):
            yield root.joinpath(*names[:depth]), files


def _left(folder: Path, files: _Files) -> int | None:
    """Return the bytes below a group's limit that are not taken; None without a limit."""
    try:
        limit = (folder / files.limit).read_text().strip()
        used = int((folder / files.used).read_text())
        kept = _fields(folder / "memory.stat")
    except OSError:
        return None
    if limit == "max":
        return None
    return max(0, int(limit) - used + sum(kept.get(name, 0) for name in files.reclaimable))


def _fields(path: Path) -> dict[str, int]:
    rows = [line.split() for line in path.read_text().splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}


if __name__ == "__main__":
    sys.stdout.write(f"{available_memory()}\n")
