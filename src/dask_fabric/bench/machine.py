"""The machine that figures come from: its hardware and versions, and its other load."""

from __future__ import annotations

import os
import platform
import resource
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("distributed", "dask", "numpy", "uvloop", "dask-fabric")
_OTHERS_LIMIT = 0.05  # of all CPU time
_STEAL_LIMIT = 0.02


def facts() -> dict[str, object]:
    """The machine and the versions that a figure depends on."""
    return {
        "host": platform.node(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "cpu": _cpu_model(),
        "cpu_count": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.lower().startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class _Ticks:
    """Time of all CPUs so far, in ticks."""

    total: int
    busy: int
    stolen: int


def _ticks() -> _Ticks:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, idle, iowait, irq, softirq, stolen = map(int, fields[:8])
    busy = user + nice + system + irq + softirq
    return _Ticks(busy + idle + iowait + stolen, busy, stolen)


def _own_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class NoiseWatch:
    """Watches, from its creation on, the machine's load besides the measurements.

    All measuring child processes must have ended before `warnings` is called; others are counted as
    foreign load.
    """

    def __init__(self) -> None:
        self._ticks, self._own = _ticks(), _own_seconds()

    def warnings(self) -> list[str]:
        """Describe load that makes the figures doubtful, in sentences."""
        now = _ticks()
        total = now.total - self._ticks.total
        if total <= 0:
            return []
        own = (_own_seconds() - self._own) * os.sysconf("SC_CLK_TCK")
        others = (now.busy - self._ticks.busy - own) / total
        stolen = (now.stolen - self._ticks.stolen) / total
        found = []
        if others > _OTHERS_LIMIT:
            found.append(f"other processes used {others:.0%} of the CPUs during the measurement")
        if stolen > _STEAL_LIMIT:
            found.append(f"the hypervisor used {stolen:.0%} of the CPUs during the measurement")
        return found
