"""What this computer offers: processor, cores under the quota, memory limit, and measured rates.

In a container the kernel shows the host's cores and memory; what the process may use stands in its
control groups. Everything here reads below a root path, so tests can lay out trees of their own.
The C++ extension is imported only to measure rates.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from hasten import __version__
from hasten.errors import HastenError

__all__ = [
    "Cache",
    "Machine",
    "Rates",
    "available_cores",
    "cpu_quota",
    "detect_machine",
    "measure_rates",
    "memory_limit",
    "physical_cores",
]

ROOT = Path("/")
VECTOR_FLAGS = re.compile(r"(sse|ssse|avx|fma|f16c|amx|asimd|neon|sve|sme|i8mm|bf16|fphp).*|pni")


@dataclass(frozen=True, slots=True)
class Cache:
    """One cache that the first core sees.

    Attributes:
        level: 1, 2, 3...
        kind: "Data", "Instruction" or "Unified".
        size_bytes: Capacity.
        shared_by: Logical cores that share it.
    """

    level: int
    kind: str
    size_bytes: int
    shared_by: int


@dataclass(frozen=True, slots=True)
class Machine:
    """A computer as this process may use it.

    Attributes:
        cpu: Model name of the processor.
        architecture: As `uname -m` prints it, e.g. "x86_64".
        cores: Cores this process may use: scheduler affinity and control group quota applied.
        physical_cores: Physical cores among them.
        cores_online: Cores the kernel runs.
        cpu_quota: Cores' worth of time the control groups grant, None for no quota.
        memory_total_bytes: Physical memory.
        memory_limit_bytes: Memory this process may use: the least of total and control groups.
        caches: Caches of the first core.
        isa_flags: Vector extensions as the kernel names them, sorted.
        kernel: Operating system and its version.
        python: Version of Python.
        hasten: Version of Hasten.
    """

    cpu: str
    architecture: str
    cores: int
    physical_cores: int
    cores_online: int
    cpu_quota: float | None
    memory_total_bytes: int
    memory_limit_bytes: int
    caches: tuple[Cache, ...]
    isa_flags: tuple[str, ...]
    kernel: str
    python: str
    hasten: str

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values, as reports carry them."""
        return asdict(self) | {
            "caches": [asdict(cache) for cache in self.caches],
            "isa_flags": list(self.isa_flags),
        }


@dataclass(frozen=True, slots=True)
class Rates:
    """What probes measured on this machine.

    Attributes:
        threads: Threads that ran at once.
        isa: Instruction set that counted operations.
        bandwidth: Bytes read from memory per second.
        int8: Integer operations per second, a multiply-add counting as two.
        fp32: Floating-point operations per second, counted likewise.
    """

    threads: int
    isa: str
    bandwidth: float
    int8: float
    fp32: float

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values with their units in the names."""
        return {
            "threads": self.threads,
            "isa": self.isa,
            "bandwidth_bytes_per_s": self.bandwidth,
            "int8_operations_per_s": self.int8,
            "fp32_operations_per_s": self.fp32,
        }


def detect_machine(root: Path = ROOT) -> Machine:
    """Describe the computer below `root`; takes milliseconds and allocates nothing large."""
    cpuinfo = _read(root / "proc/cpuinfo")
    total = _memory_total(root)
    return Machine(
        cpu=_cpu_name(cpuinfo),
        architecture=platform.machine(),
        cores=(cores := available_cores(root)),
        physical_cores=min(cores, physical_cores(root)),
        cores_online=os.cpu_count() or 1,
        cpu_quota=cpu_quota(root),
        memory_total_bytes=total,
        memory_limit_bytes=memory_limit(root),
        caches=_caches(root),
        isa_flags=_isa_flags(cpuinfo),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        hasten=__version__,
    )


def available_cores(root: Path = ROOT) -> int:
    """Cores this process may use, at least 1.

    A fractional quota is rounded down: threads beyond it would be stopped for part of each period
    while the others wait for them.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def physical_cores(root: Path = ROOT) -> int:
    """Physical cores among those this process may run on, at least 1; quotas are not looked at.

    Hardware threads that the kernel lists as siblings of one core count once.
    """
    directory = root / "sys/devices/system/cpu"
    allowed = os.sched_getaffinity(0)
    siblings = {_read(directory / f"cpu{i}/topology/thread_siblings_list") or i for i in allowed}
    return max(1, len(siblings))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Cores' worth of processor time that control groups grant, None where they set no limit.

    Reads `cpu.max` (version 2) and `cpu.cfs_quota_us` over `cpu.cfs_period_us` (version 1) of the
    process' own group and of all groups above it; the least counts.
    """
    quotas = [_quota_v2(_read(group / "cpu.max")) for group in _groups(root, None)]
    quotas += [
        _quota_v1(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))
        for group in _groups(root, "cpu")
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_limit(root: Path = ROOT) -> int:
    """Bytes of memory this process may use: the least of the machine's and its groups' limits."""
    texts = [_read(group / "memory.max") for group in _groups(root, None)]
    texts += [_read(group / "memory.limit_in_bytes") for group in _groups(root, "memory")]
    limits = [int(text) for text in texts if re.fullmatch(r"[0-9]+", text)]
    return min([_memory_total(root), *limits])


def measure_rates(threads: int, isa: str | None = None, *, megabytes: int = 256) -> Rates:
    """Measure what `threads` threads reach together; takes about a second.

    Each probe runs several times and the best counts, since whatever else runs can only slow it.

    Args:
        threads: How many threads to use.
        isa: Instruction set to count operations with; None takes the best of this machine.
        megabytes: Size of the memory that is streamed; it must be far larger than the caches.

    Raises:
        HastenError: If the C++ extension is not there.
    """
    try:
        from hasten import _native
    except ImportError as error:
        raise HastenError(
            f"the C++ extension cannot be loaded ({error})", do="install Hasten again"
        ) from error
    used = isa or _native.isas()[0]
    return Rates(
        threads=threads,
        isa=used,
        bandwidth=_native.stream_bandwidth(threads, megabytes),
        int8=_native.int8_rate(threads, used),
        fp32=_native.fp32_rate(threads, used),
    )


def _read(path: Path) -> str:
    """The text of a kernel file, "" where this kernel has none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _groups(root: Path, controller: str | None) -> Iterator[Path]:
    """Yield the directories of the control groups that hold this process, innermost first.

    Args:
        root: Where /proc and /sys are.
        controller: A version 1 controller, None for the version 2 hierarchy.
    """
    membership = _membership(_read(root / "proc/self/cgroup"), controller)
    if membership is None:
        return
    for line in _read(root / "proc/self/mountinfo").splitlines():
        mount = _cgroup_mount(line, controller)
        if mount is None:
            continue
        mount_root, mount_point = mount
        inside = PurePosixPath(membership)
        top = root / mount_point.lstrip("/")
        # Under a cgroup namespace, or where only a part is mounted, the path may lie outside.
        if ".." in inside.parts or not inside.is_relative_to(mount_root):
            yield top
            return
        group = top / inside.relative_to(mount_root)
        while group != top:
            yield group
            group = group.parent
        yield top
        return


def _membership(text: str, controller: str | None) -> str | None:
    """Find the path of the process' group in a text like /proc/self/cgroup."""
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller is None and number == "0" and not controllers:
            return path
        if controller is not None and controller in controllers.split(","):
            return path
    return None


def _cgroup_mount(line: str, controller: str | None) -> tuple[str, str] | None:
    """Return (root, mount point) if a line of /proc/self/mountinfo mounts this hierarchy."""
    left, separator, right = line.partition(" - ")
    fields, types = left.split(), right.split()
    if not separator or len(fields) < 5 or len(types) < 3:
        return None
    if controller is None:
        matches = types[0] == "cgroup2"
    else:
        matches = types[0] == "cgroup" and controller in types[2].split(",")
    return (fields[3], fields[4]) if matches else None


def _quota_v2(text: str) -> float | None:
    """Parse `cpu.max`: "max 100000" or "150000 100000"."""
    match = re.fullmatch(r"([0-9]+) ([0-9]+)", text)
    if match is None or int(match[2]) == 0:
        return None
    return int(match[1]) / int(match[2])


def _quota_v1(quota: str, period: str) -> float | None:
    """Parse the two files of version 1; a quota of -1 means none."""
    if not re.fullmatch(r"[0-9]+", quota) or not re.fullmatch(r"[0-9]+", period):
        return None
    return int(quota) / int(period) if int(period) and int(quota) else None


def _memory_total(root: Path) -> int:
    match = re.search(r"^MemTotal:\s+([0-9]+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    if match is not None:
        return int(match[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cpu_name(cpuinfo: str) -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _isa_flags(cpuinfo: str) -> tuple[str, ...]:
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = match[1].split() if match else []
    return tuple(sorted(flag for flag in flags if VECTOR_FLAGS.fullmatch(flag)))


def _caches(root: Path) -> tuple[Cache, ...]:
    directory = root / "sys/devices/system/cpu/cpu0/cache"
    found = []
    for index in sorted(directory.glob("index*")):
        level, size = _read(index / "level"), _read(index / "size")
        match = re.fullmatch(r"([0-9]+)([KMG]?)", size)
        if match is None or not level.isdecimal():
            continue
        size_bytes = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]
        shared = _count_cores(_read(index / "shared_cpu_list"))
        found.append(Cache(int(level), _read(index / "type"), size_bytes, shared))
    return tuple(found)


def _count_cores(ranges: str) -> int:
    """Count the cores in a list like "0-3,8"; at least 1."""
    count = 0
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last.isdecimal() or not last):
            count += int(last or first) - int(first) + 1
    return max(1, count)
