"""Fake /proc and /sys trees: what a container grants is found wherever it is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hasten.machine import (
    available_cores,
    cpu_quota,
    detect_machine,
    memory_limit,
    physical_cores,
)

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def tree_v2(
    root: Path, files: dict[str, str], *, path: str = "/box", mount_root: str = "/"
) -> Path:
    return write(
        root,
        {
            "proc/meminfo": "MemTotal:       8388608 kB\nMemFree: 1 kB\n",
            "proc/self/cgroup": f"0::{path}\n",
            "proc/self/mountinfo": (
                "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
                f"31 23 0:27 {mount_root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
            ),
            **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
        },
    )


def tree_v1(
    root: Path, files: dict[str, str], *, path: str = "/docker/7", mount: str = "/"
) -> Path:
    return write(
        root,
        {
            "proc/meminfo": "MemTotal:       8388608 kB\n",
            "proc/self/cgroup": f"4:cpu,cpuacct:{path}\n3:memory:{path}\n1:name=systemd:{path}\n",
            "proc/self/mountinfo": (
                f"32 23 0:28 {mount} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
                f"33 23 0:29 {mount} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            ),
            **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
        },
    )


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("200000 100000", 2.0),
        ("150000 100000", 1.5),
        ("50000 100000", 0.5),
        ("max 100000", None),
        ("", None),
        ("nonsense", None),
        ("100000 0", None),
    ],
)
def test_quota_of_version_2(tmp_path, text, quota):
    assert cpu_quota(tree_v2(tmp_path, {"box/cpu.max": text})) == quota


def test_the_tightest_group_above_counts(tmp_path):
    root = tree_v2(
        tmp_path,
        {"a/cpu.max": "100000 100000", "a/b/cpu.max": "400000 100000", "a/memory.max": str(GIB)},
        path="/a/b",
    )
    assert cpu_quota(root) == 1.0
    assert memory_limit(root) == GIB


def test_a_namespaced_path_falls_back_to_the_mount(tmp_path):
    root = tree_v2(tmp_path, {"cpu.max": "300000 100000"}, path="/../other")
    assert cpu_quota(root) == 3.0


def test_a_mounted_part_of_the_hierarchy(tmp_path):
    files = {"inner/cpu.max": "100000 100000", "cpu.max": "max 100000"}
    root = tree_v2(tmp_path, files, path="/outer/inner", mount_root="/outer")
    assert cpu_quota(root) == 1.0


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("250000", "100000", 2.5), ("-1", "100000", None), ("100000", "0", None), ("", "", None)],
)
def test_quota_of_version_1(tmp_path, quota, period, expected):
    files = {
        "cpu,cpuacct/docker/7/cpu.cfs_quota_us": quota,
        "cpu,cpuacct/docker/7/cpu.cfs_period_us": period,
    }
    assert cpu_quota(tree_v1(tmp_path, files)) == expected


def test_version_1_inside_a_container_sees_its_group_as_the_mount(tmp_path):
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "100000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}
    assert cpu_quota(tree_v1(tmp_path, files, mount="/docker/7")) == 1.0


def test_memory_limits(tmp_path):
    total = 8 * GIB
    assert memory_limit(tree_v2(tmp_path / "a", {"box/memory.max": str(2 * GIB)})) == 2 * GIB
    assert memory_limit(tree_v2(tmp_path / "b", {"box/memory.max": "max"})) == total
    unlimited = {"memory/docker/7/memory.limit_in_bytes": "9223372036854771712"}
    assert memory_limit(tree_v1(tmp_path / "c", unlimited)) == total
    limited = {"memory/docker/7/memory.limit_in_bytes": str(GIB)}
    assert memory_limit(tree_v1(tmp_path / "d", limited)) == GIB


def test_a_fractional_quota_rounds_down_but_not_to_zero(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert available_cores(tree_v2(tmp_path / "a", {"box/cpu.max": "390000 100000"})) == 3
    assert available_cores(tree_v2(tmp_path / "b", {"box/cpu.max": "10000 100000"})) == 1
    assert available_cores(tree_v2(tmp_path / "c", {"box/cpu.max": "max 100000"})) == 8


def test_affinity_counts_where_it_is_tighter(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert available_cores(tree_v2(tmp_path, {"box/cpu.max": "400000 100000"})) == 1


def test_an_empty_tree_describes_what_it_can(tmp_path):
    machine = detect_machine(tmp_path)
    assert machine.cores == len(os.sched_getaffinity(0))
    assert machine.cpu_quota is None
    assert machine.memory_limit_bytes == machine.memory_total_bytes > 0
    assert machine.caches == ()


def test_caches_and_flags(tmp_path):
    cache = "sys/devices/system/cpu/cpu0/cache/index3"
    root = write(
        tmp_path,
        {
            f"{cache}/level": "3\n",
            f"{cache}/type": "Unified\n",
            f"{cache}/size": "32768K\n",
            f"{cache}/shared_cpu_list": "0-3,8\n",
            "proc/cpuinfo": "model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni msr\n",
        },
    )
    machine = detect_machine(root)
    assert machine.cpu == "Some CPU"
    assert machine.isa_flags == ("avx2", "avx512_vnni")
    (found,) = machine.caches
    assert (found.level, found.kind, found.size_bytes, found.shared_by) == (
        3,
        "Unified",
        32 << 20,
        5,
    )


def test_this_machine_as_json_values():
    values = detect_machine().as_dict()
    assert values["cores"] >= 1
    assert isinstance(values["caches"], list)
    assert isinstance(values["isa_flags"], list)


def test_hardware_threads_of_a_core_count_once(tmp_path, monkeypatch):
    files = {
        f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}\n"
        for i in range(8)
    }
    root = write(tmp_path, files)
    for allowed, physical in ((range(8), 4), ((0, 4), 1), ((1, 2, 3), 3), ((0, 9), 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, allowed=allowed: set(allowed))
        assert physical_cores(root) == physical


def test_a_kernel_that_tells_no_siblings(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert physical_cores(tmp_path) == 3
