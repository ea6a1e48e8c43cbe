"""Where UCX libraries may be on this host, and what its devices need of a library."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dask_fabric.errors import UnavailableError
from dask_fabric.paths.places import (
    SYSTEM_FOLDERS,
    Candidate,
    library_file,
    mapped_files,
    search_path,
)

SONAME = "libucp.so.0"
SITE_VARIABLES = ("EBROOTUCX", "UCX_ROOT", "UCX_HOME", "UCX_DIR")  # set by environment modules
VENDOR_FOLDERS = ("/opt/hpcx/ucx/lib", "/opt/ucx/lib")
# Prefixes of the transports for such a device, as UCX names them.
VERBS = ("rc_", "dc_", "ud_", "srd", "gga_")
CUDA, ROCM = ("cuda",), ("rocm",)


@dataclass(frozen=True)
class Host:
    """The devices of this host that make one UCX library better than another."""

    rdma_devices: tuple[str, ...] = ()
    has_nvidia_gpu: bool = False
    has_amd_gpu: bool = False

    @property
    def needs(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """What a library should support here, most important first: a name, and its prefixes."""
        needs: list[tuple[str, tuple[str, ...]]] = []
        if self.rdma_devices:
            needs.append((f"verbs for {', '.join(self.rdma_devices)}", VERBS))
        if self.has_nvidia_gpu:
            needs.append(("CUDA for the NVIDIA GPU", CUDA))
        if self.has_amd_gpu:
            needs.append(("ROCm for the AMD GPU", ROCM))
        return tuple(needs)


def look(root: Path = Path("/")) -> Host:
    """Find the devices of this host that concern UCX; reads directory entries only.

    Parameters
    ----------
    root : Path
        Where ``dev``, ``proc`` and ``sys`` are mounted.

    Returns
    -------
    Host
    """
    try:
        devices = sorted(os.listdir(root / "sys/class/infiniband"))
    except OSError:
        devices = []
    nvidia = (root / "dev/nvidiactl", root / "proc/driver/nvidia")
    return Host(tuple(devices), any(map(os.path.exists, nvidia)), (root / "dev/kfd").exists())


def is_wanted(enabled: bool | None, host: Host) -> tuple[bool, str]:
    """Decide by ``fabric.ucx.enabled`` whether to look for UCX at all, with the reason.

    Parameters
    ----------
    enabled : bool or None
        None means auto.
    host : Host

    Returns
    -------
    (bool, str)
    """
    if enabled is not None:
        return enabled, f"fabric.ucx.enabled is {str(enabled).lower()}"
    if host.needs:
        return True, f"this host needs {', '.join(name for name, _ in host.needs)}"
    return False, "this host has neither RDMA devices nor GPUs (fabric.ucx.enabled is auto)"


def candidates(explicit: str | None = None) -> list[Candidate]:
    """List the places to look at, in order; some may not exist.

    A UCX that this process has loaded is the only candidate: a second one cannot be loaded.

    Raises
    ------
    UnavailableError
        A UCX other than the explicit one is loaded.
    """
    loaded = _loaded_library()
    if explicit:
        path = library_file(Path(explicit).expanduser(), SONAME)
        if loaded and os.path.realpath(path) != os.path.realpath(loaded):
            raise UnavailableError(
                f"fabric.ucx.library is {explicit!r}, but this process has loaded {loaded}, and a "
                "second UCX would crash it: import dask_fabric first, or use the same for both"
            )
        return [Candidate("fabric.ucx.library", str(path))]
    if loaded:
        return [Candidate("already loaded", loaded)]
    return list(_search_path())


def _search_path() -> Iterator[Candidate]:
    wheel = importlib.util.find_spec("libucx")
    wheels = wheel.submodule_search_locations or () if wheel else ()
    folders = (*SYSTEM_FOLDERS, *VENDOR_FOLDERS)
    return search_path(SONAME, SITE_VARIABLES, folders, [Path(one, "lib") for one in wheels])


def _loaded_library() -> str | None:
    """Give the libucp of the UCX that is loaded in this process, if any of its libraries is."""
    mapped = mapped_files(r"libuc[mstp]\.so")
    for path in mapped:
        if "/libucp.so" in path:
            return path
    return str(Path(mapped[0]).parent / SONAME) if mapped else None
