"""The tightest of a machine's memory and the limits of control groups, from files that Linux might show."""

from pathlib import Path

import pytest

from zs_nemo.cluster.available_memory import available_memory

GIB = 2**30


class Linux:
    """The files of a machine with 64 GiB available."""

    def __init__(self, folder: Path) -> None:
        self.machine, self.membership, self.groups = folder / "meminfo", folder / "cgroup", folder / "groups"
        self.machine.write_text(f"MemTotal: 1 kB\nMemAvailable:   {64 * 2**20} kB\nHugePages_Total:  0\n")

    def limit(self, group: str, limit: str, used: int, names: tuple[str, str], **stat: int) -> None:
        folder = self.groups / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in zip(names, (limit, used), strict=True):
            (folder / name).write_text(f"{value}\n")
        (folder / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in stat.items()))

    def limit_v2(self, group: str, limit: str, used: int, **stat: int) -> None:
        self.limit(group, limit, used, ("memory.max", "memory.current"), **stat)

    def limit_v1(self, group: str, limit: str, used: int, **stat: int) -> None:
        self.limit(group, limit, used, ("memory.limit_in_bytes", "memory.usage_in_bytes"), **stat)

    def available_gib(self) -> float:
        return available_memory(self.machine, self.membership, self.groups) / GIB


@pytest.fixture
def linux(tmp_path: Path) -> Linux:
    return Linux(tmp_path)


def test_without_a_limit_the_machine_s_memory_counts(linux: Linux) -> None:
    assert linux.available_gib() == 64, "no control groups at all"
    linux.membership.write_text("0::/user.slice\n")
    linux.limit_v2("user.slice", "max", 5 * GIB)
    assert linux.available_gib() == 64


def test_a_container_s_limit_counts_less_what_it_has_taken_and_more_what_is_merely_cached(linux: Linux) -> None:
    linux.membership.write_text("0::/\n")
    caches = {"active_file": GIB, "inactive_file": GIB, "slab_reclaimable": GIB // 2, "anon": 5 * GIB}
    linux.limit_v2("", str(8 * GIB), 6 * GIB, **caches)
    assert linux.available_gib() == 4.5


def test_a_job_s_limit_holds_for_the_steps_in_it(linux: Linux) -> None:
    linux.membership.write_text("0::/system.slice/job_7/step_batch/user\n")
    linux.limit_v2("system.slice/job_7/step_batch/user", "max", 0)
    linux.limit_v2("system.slice/job_7", str(16 * GIB), 4 * GIB)
    linux.limit_v2("system.slice", str(100 * GIB), 0)
    assert linux.available_gib() == 12


def test_limits_of_the_older_interface_are_read_and_those_of_other_controllers_are_not(linux: Linux) -> None:
    linux.membership.write_text("9:cpu,cpuacct:/docker/abc\n4:hugetlb,memory:/docker/abc\n0::/\n")
    # The container sees its own group as the root.
    linux.limit_v1("memory", str(8 * GIB), 3 * GIB, total_inactive_file=GIB, inactive_file=GIB)
    linux.limit_v1("cpu,cpuacct/docker/abc", str(GIB), 0)
    assert linux.available_gib() == 6
    linux.limit_v1("memory", "9223372036854771712", 3 * GIB)
    assert linux.available_gib() == 64


def test_a_limit_that_is_passed_leaves_nothing(linux: Linux) -> None:
    linux.membership.write_text("0::/a\n")
    linux.limit_v2("a", str(GIB), 2 * GIB)
    assert linux.available_gib() == 0


def test_this_process_has_memory_left() -> None:
    assert available_memory() > 0
