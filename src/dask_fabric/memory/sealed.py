"""Sealed files of memory (memfd_create(2)), and what the kernel allows with them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from dask_fabric.errors import UnavailableError

_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034  # fcntl(2)
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1, 2, 4
_NO_OVERCOMMIT = 2


def make(sizes: Mapping[str, int]) -> list[int]:
    """Make files of these names that keep their sizes, so that their mappings never lose pages.

    All of them, or none.
    """
    return _all_or_none([partial(_make, name, nbytes) for name, nbytes in sizes.items()])


def _make(name: str, nbytes: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, nbytes)
        fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _all_or_none(opening: Sequence[Callable[[], int]]) -> list[int]:
    opened: list[int] = []
    try:
        for one in opening:
            opened.append(one())
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    return opened


def check(fd: int, nbytes: int) -> None:
    """Raise ValueError unless a peer's descriptor is of a file of this size, which it keeps."""
    try:
        seals = fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        seals = 0
    if not seals & _F_SEAL_SHRINK or os.fstat(fd).st_size != nbytes:
        raise ValueError("the peer's descriptor is not of a memory file as it must be")


def reopen(fds: Sequence[int], flags: int) -> list[int]:
    """Open the files of descriptors once more, with locks of their own: all of them, or none.

    Raises
    ------
    OSError
        ``/proc`` is not mounted, or no descriptor is left.
    """
    names = (f"/proc/self/fd/{fd}" for fd in fds)
    return _all_or_none([partial(os.open, name, flags | os.O_CLOEXEC) for name in names])


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
