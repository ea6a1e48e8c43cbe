"""Locks on bytes of a file that belong to an open file description, see fcntl(2)."""

from libc.string cimport memset

from dask_fabric.linux cimport F_OFD_SETLK, F_RDLCK, F_UNLCK, F_WRLCK, fcntl, flock


cdef inline bint lock_bytes(int fd, long first, long count, short kind) noexcept nogil:
    """Lock bytes (F_RDLCK, F_WRLCK), or unlock them (F_UNLCK); False where others have a lock."""
    cdef flock wanted
    memset(&wanted, 0, sizeof(wanted))
    wanted.l_type, wanted.l_start, wanted.l_len = kind, first, count
    return fcntl(fd, F_OFD_SETLK, &wanted) == 0
