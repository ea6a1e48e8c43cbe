"""This host as a process sees it: versions, kernel limits and namespaces."""

from __future__ import annotations

import os
import platform
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from dask.system import CPU_COUNT

from dask_fabric.config import host_memory_bytes
from dask_fabric.gpu.files import read_fields, read_int, read_text
from dask_fabric.paths import openssl

Limit = int | Literal["unlimited"] | None

_PACKAGES = ("dask-fabric", "distributed", "dask", "numpy")
_NAMESPACES = ("pid", "user", "net", "ipc")
# PROC_PID_INIT_INO and PROC_USER_INIT_INO of the kernel.
_FIRST_NAMESPACES = {"pid": 0xEFFFFFFC, "user": 0xEFFFFFFD}
_CAP_SYS_PTRACE = 19
_CONTAINERS = {
    ".dockerenv": "docker",
    "run/.containerenv": "podman",
    ".singularity.d": "apptainer",
}


@dataclass(frozen=True)
class Host:
    """Hardware and software versions of this host."""

    name: str | None = None
    kernel: str | None = None
    architecture: str | None = None
    cpu_count: int | None = None
    memory_bytes: int | None = None
    packages: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """Limits of the kernel and of this process; None is unknown."""

    memlock_bytes: Limit = None
    open_file_count: Limit = None
    shm_bytes: int | None = None
    shm_free_bytes: int | None = None
    transparent_huge_pages: str | None = None
    shmem_huge_pages: str | None = None  # of memory files
    reserved_huge_page_count: int | None = None
    somaxconn_count: int | None = None
    wmem_max_bytes: int | None = None
    rmem_max_bytes: int | None = None
    tcp_wmem_max_bytes: int | None = None
    tcp_rmem_max_bytes: int | None = None
    ptrace_scope: int | None = None
    may_trace_all: bool | None = None
    seccomp: bool | None = None


@dataclass(frozen=True)
class Identity:
    """What decides whether two processes share a kernel, and can see each other."""

    boot_id: str | None = None
    namespaces: dict[str, int | None] = field(default_factory=dict)
    container: str = ""

    def has_own(self, kind: str) -> bool:
        """Whether this process is in another namespace, ``pid`` or ``user``, than the host."""
        return self.namespaces.get(kind) not in (None, _FIRST_NAMESPACES[kind])


def inspect_host(root: Path = Path("/")) -> Host:
    """Collect the versions; *root* is where ``proc`` and ``sys`` are mounted."""
    packages: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    threads = "in native threads" if openssl.is_available else "under the GIL"
    packages["OpenSSL"] = f"{ssl.OPENSSL_VERSION.split()[1]} ({threads})"
    return Host(
        name=platform.node(),
        kernel=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        cpu_count=CPU_COUNT,
        memory_bytes=host_memory_bytes(root),
        packages=packages,
    )


def inspect_limits(root: Path = Path("/")) -> Limits:
    """Read the limits that concern the paths."""
    process = _process_limits(root)
    shm_bytes, shm_free_bytes = _sizes_of(root / "dev/shm")
    core = root / "proc/sys/net/core"
    ipv4 = root / "proc/sys/net/ipv4"
    status = read_fields(root / "proc/self/status")
    return Limits(
        memlock_bytes=process.get("Max locked memory"),
        open_file_count=process.get("Max open files"),
        shm_bytes=shm_bytes,
        shm_free_bytes=shm_free_bytes,
        transparent_huge_pages=_chosen(root, "enabled"),
        shmem_huge_pages=_chosen(root, "shmem_enabled"),
        reserved_huge_page_count=read_int(root / "proc/sys/vm/nr_hugepages"),
        somaxconn_count=read_int(core / "somaxconn"),
        wmem_max_bytes=read_int(core / "wmem_max"),
        rmem_max_bytes=read_int(core / "rmem_max"),
        tcp_wmem_max_bytes=read_int(ipv4 / "tcp_wmem", 2),
        tcp_rmem_max_bytes=read_int(ipv4 / "tcp_rmem", 2),
        ptrace_scope=_ptrace_scope(root),
        may_trace_all=_has_capability(status.get("CapEff"), _CAP_SYS_PTRACE),
        seccomp={"0": False, "1": True, "2": True}.get(status.get("Seccomp", "")),
    )


def inspect_identity(
    root: Path = Path("/"), environment: Mapping[str, str] = os.environ
) -> Identity:
    """Read the boot id and the namespaces of this process."""
    namespaces = {name: _namespace(root / "proc/self/ns" / name) for name in _NAMESPACES}
    return Identity(
        boot_id=read_text(root / "proc/sys/kernel/random/boot_id"),
        namespaces=namespaces,
        container=_container(root, environment),
    )


def _process_limits(root: Path) -> dict[str, Limit]:
    """Give the soft limits in ``/proc/self/limits``, by their names there."""
    found: dict[str, Limit] = {}
    for line in (read_text(root / "proc/self/limits") or "").splitlines():
        match = re.match(r"(Max [a-z ]+?)\s{2,}(\d+|unlimited)\s", line)
        if match:
            found[match[1]] = "unlimited" if match[2] == "unlimited" else int(match[2])
    return found


def _sizes_of(folder: Path) -> tuple[int | None, int | None]:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None, None
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _chosen(root: Path, setting: str) -> str | None:
    text = read_text(root / "sys/kernel/mm/transparent_hugepage" / setting)
    chosen = re.search(r"\[(\w+)\]", text or "")
    return chosen[1] if chosen else None


def _ptrace_scope(root: Path) -> int | None:
    file = root / "proc/sys/kernel/yama/ptrace_scope"
    # A kernel without Yama has no such file, and restricts nothing.
    return read_int(file) if file.exists() else 0


def _has_capability(mask: str | None, number: int) -> bool | None:
    try:
        return bool(int(mask or "", 16) >> number & 1)
    except ValueError:
        return None


def _namespace(link: Path) -> int | None:
    try:
        found = re.fullmatch(r"\w+:\[(\d+)\]", os.readlink(link))
    except OSError:
        return None
    return int(found[1]) if found else None


def _container(root: Path, environment: Mapping[str, str]) -> str:
    """Name the container runtime of this process, or give ""."""
    if environment.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    for file, name in _CONTAINERS.items():
        if (root / file).exists():
            return name
    return environment.get("container", "")
