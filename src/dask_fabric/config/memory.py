"""The memory that this process may use."""

from __future__ import annotations

import functools
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil


@functools.cache
def host_memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this process may use: the smallest limit of host, cgroup and ulimit.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` are mounted.
    """
    limits = (*_cgroup_limits(root), *_resource_limits())
    return min((psutil.virtual_memory().total, *limits))


def _resource_limits() -> Iterator[int]:
    # The kernel ignores RLIMIT_RSS, but Dask does not.
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_RSS):
        limit, _ = resource.getrlimit(kind)
        if limit > 0:  # RLIM_INFINITY is -1
            yield limit


def _cgroup_limits(root: Path) -> Iterator[int]:
    # The limits of a group's ancestors apply too, see cgroups(7).
    for base, group, file in _cgroups(root):
        for ancestor in (group, *group.parents):
            try:
                yield int((base / ancestor.relative_to("/") / file).read_text())
            except (OSError, ValueError):  # not mounted here, or "max"
                continue


def _cgroups(root: Path) -> Iterator[tuple[Path, PurePosixPath, str]]:
    mounts = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            yield mounts, PurePosixPath(group), "memory.max"
        elif "memory" in controllers.split(","):
            yield mounts / "memory", PurePosixPath(group), "memory.limit_in_bytes"
