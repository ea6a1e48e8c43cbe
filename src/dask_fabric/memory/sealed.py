"""Sealed files of memory (memfd_create(2)), and what the kernel allows with them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from dask_fabric.errors import UnavailableError

_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034  # fcntl(2)
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1, 2, 4
_NO_OVERCOMMIT = 2


def make(name: str, nbytes: int) -> int:
    """Make a file that keeps its size, so that its mappings never lose pages."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, nbytes)
        fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check(fd: int, nbytes: int) -> None:
    """Raise ValueError unless a peer's descriptor is of a file of this size, which it keeps."""
    try:
        seals = fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        seals = 0
    if not seals & _F_SEAL_SHRINK or os.fstat(fd).st_size != nbytes:
        raise ValueError("the peer's descriptor is not of a memory file as it must be")


def reopen(fd: int, flags: int) -> int:
    """Open the file of a descriptor once more, with locks of its own.

    Raises
    ------
    OSError
        ``/proc`` is not mounted, or no descriptor is left.
    """
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


def check_overcommit(root: Path = Path("/")) -> None:
    """Raise UnavailableError where the kernel promises no more memory than it has.

    A page of a file that it cannot give then ends the process (SIGBUS), where `malloc` fails.
    """
    if _setting(root, "overcommit_memory") == _NO_OVERCOMMIT:
        raise UnavailableError(
            "memory files are not used where vm.overcommit_memory is 2: a process would be killed "
            "where ordinary memory is refused"
        )


def map_count(usual: int, root: Path = Path("/")) -> int:
    """Give how many mappings a process may have (vm.max_map_count)."""
    return _setting(root, "max_map_count") or usual


def _setting(root: Path, name: str) -> int | None:
    try:
        return int((root / "proc/sys/vm" / name).read_text())
    except (OSError, ValueError):
        return None
