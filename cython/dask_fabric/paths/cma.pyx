"""The `cma` path: a frame is read out of the memory of its sender, a process of this host.

Cross memory attach is process_vm_readv(2): one copy, made by the reader alone. Whether a process
may do that is found out by doing it: each has a secret at an address that it tells its peers.
"""

import os

from libc.errno cimport EFAULT, EINTR, EPERM, ESRCH, errno
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from dask_fabric.linux cimport (
    PR_SET_PTRACER, PR_SET_PTRACER_ANY, iovec, prctl, process_vm_readv, syscall,
)

cdef enum:
    NONCE_BYTES = 16
    SYS_PIDFD_OPEN = 434        # older headers lack the name; one number, but for Alpha

cdef unsigned char nonce[NONCE_BYTES]


def _renew_nonce():
    cdef bytes random = os.urandom(NONCE_BYTES)
    memcpy(nonce, <const char *> random, NONCE_BYTES)


_renew_nonce()
os.register_at_fork(after_in_child=_renew_nonce)


cdef int read_memory(int pid, char *data, uint64_t address, size_t nbytes) noexcept nogil:
    """Copy out of another process; 0, or the errno for which not all of it came."""
    cdef iovec here
    cdef iovec there
    cdef ssize_t moved
    while nbytes > 0:
        here = iovec(data, nbytes)
        there = iovec(<void *> address, nbytes)
        moved = process_vm_readv(pid, &here, 1, &there, 1, 0)
        if moved <= 0:
            if moved < 0 and errno == EINTR:
                continue
            return EFAULT if moved == 0 else errno
        data += moved
        address += moved
        nbytes -= moved
    return 0


cdef int open_process(int pid) noexcept nogil:
    """A descriptor that is readable when all threads of a process have ended; else minus the errno,
    ESRCH where there is no such process any more."""
    cdef int fd = <int> syscall(SYS_PIDFD_OPEN, <long> pid, <long> 0)
    return fd if fd >= 0 else -errno


def secret():
    """What this process tells its peers, so that they can find out whether they may read it.

    Returns
    -------
    (int, bytes)
        An address in this process, and the bytes that are there.
    """
    return <uint64_t> &nonce[0], (<char *> &nonce[0])[:NONCE_BYTES]


def probe(pid, address, expected):
    """Find out whether the process *pid* is the one that told its secret, and can be read.

    Parameters
    ----------
    pid : int
        As this process sees it.
    address : int
    expected : bytes
        What the peer says is there.

    Returns
    -------
    str
        Why not; empty where it can.
    """
    cdef char found[NONCE_BYTES]
    cdef int error
    if pid == 0:
        return "the peer's process cannot be seen from here: another pid namespace"
    if len(expected) != NONCE_BYTES or not 0 < pid < 1 << 31 or not 0 < address < 1 << 63:
        return "the peer describes its memory in a way that makes no sense"
    error = read_memory(pid, found, address, NONCE_BYTES)
    if error == EPERM:
        return (
            "process_vm_readv is not permitted: another user, a restrictive "
            "kernel.yama.ptrace_scope, or a container without SYS_PTRACE"
        )
    if error == ESRCH:
        return f"there is no process {pid} here: another host or pid namespace"
    if error == EFAULT:
        return f"process {pid} is another one here: another host or pid namespace"
    if error:
        return f"process_vm_readv failed: {os.strerror(error)}"
    if found[:NONCE_BYTES] != expected:
        return f"process {pid} is another one here: another host or pid namespace"
    return ""


def allow_peers():
    """Let processes of the same user read this one, where Yama asks for such a permission.

    Notes
    -----
    With kernel.yama.ptrace_scope 1 a process may be read by its ancestors and by whom it names; see
    prctl(2), PR_SET_PTRACER.
    """
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)
