"""The `cma` path: identifies the peer's process, and reads its memory.

Theory of operation
-------------------
Cross memory attach is process_vm_readv(2): one copy, made by the reader alone. Whether the kernel
permits it depends on users, namespaces, Yama and seccomp, so it is found out by trying: each
process announces the address of a `Secret` of 16 random bytes, and its peer reads them (`probe`).
If they match, the pid means the peer's process here, and its memory can be read.

A pid is not enough to identify a process: it may be reused by another one, whose bytes would be
taken for the peer's. So `Process` holds two descriptors: a pidfd, and the page map, which stays
bound to the same memory. They are checked *after* each copy (`has_ended`): if the process still
lives then, the pid was its own during the copy. All comms with one process share a `Process`.

A living process may also end a connection while its peer copies, and then use the memory for
something else. Over a Unix socket the end of the stream is visible at once, over TCP only when the
kernel has delivered a packet. So a connection over TCP keeps its secret while it lasts, and
overwrites it before it frees anything (`Secret.revoke`). The peer reads it again after each copy
(`check_seal`).

Reading a page of another process may block for any time: the page may be swapped out, or belong to
a file on a slow network. So `is_resident` asks the page map first. An event loop reads only pages
that are in memory. All others are read by a native thread (`paths.cma.copies`), or, for the probe,
by a thread of Python that is abandoned after `PROBE_SECONDS`.
"""

import os
import threading
import weakref

cimport cython
from libc.errno cimport EFAULT, EINTR, EPERM, ESRCH, ETIMEDOUT, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport close, pread

from dask_fabric.atomics cimport fence
from dask_fabric.linux cimport (
    POLLIN, PR_SET_PTRACER, PR_SET_PTRACER_ANY, iovec, poll, pollfd, prctl, process_vm_readv,
    syscall,
)
from dask_fabric.memory.pagemap cimport PAGE_IS_PRESENT, PAGE_MAP_BYTES, has_page
from dask_fabric.wire.frames cimport Slot
from dask_fabric.wire.path cimport REVOKED

cdef enum:
    SYS_PIDFD_OPEN = 434        # missing in older headers; the same everywhere except on Alpha

# How long a probe of a page that may not be resident may block its caller, an event loop.
PROBE_SECONDS = 0.05

# By pid: all comms with one process share its descriptors.
_processes = weakref.WeakValueDictionary()


@cython.auto_pickle(False)
@cython.final
cdef class Process:
    """A process of this host, identified beyond its pid.

    Parameters
    ----------
    pid : int
        In the pid namespace of this process.

    Raises
    ------
    OSError
        There is no such process, or its end could not be detected here.

    Notes
    -----
    See pidfd_open(2), and the kernel's Documentation/admin-guide/mm/pagemap.rst.
    """

    def __cinit__(self, int pid):
        self.pid = pid
        self.pagemap_fd = -1
        self.pidfd = <int> syscall(SYS_PIDFD_OPEN, <long> pid, <long> 0)
        if self.pidfd < 0 and errno == ESRCH:
            raise ProcessLookupError(ESRCH, f"there is no process {pid}")
        if _sees_own_processes(os.getpid()):
            self._open_pagemap()
        if self.pidfd < 0 and self.pagemap_fd < 0:
            raise OSError("neither pidfd_open nor /proc/PID/pagemap shows when a process ends")

    def __dealloc__(self):
        if self.pidfd >= 0:
            close(self.pidfd)
        if self.pagemap_fd >= 0:
            close(self.pagemap_fd)

    cdef _open_pagemap(self):
        """Open the page map if it is readable: not without permission, nor if the process's first
        thread has ended."""
        cdef uint64_t entry
        try:
            self.pagemap_fd = os.open(f"/proc/{self.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        if pread(self.pagemap_fd, &entry, PAGE_MAP_BYTES, 0) != PAGE_MAP_BYTES:
            close(self.pagemap_fd)
            self.pagemap_fd = -1

    cdef bint has_ended(self) noexcept:
        """Whether the process has ended, or runs another program now."""
        cdef pollfd state = pollfd(self.pidfd, POLLIN, 0)
        cdef uint64_t entry
        if self.pidfd >= 0 and poll(&state, 1, 0) > 0:
            return True
        # Reading the page map of freed memory returns nothing, also after an execve.
        return self.pagemap_fd >= 0 and pread(self.pagemap_fd, &entry, PAGE_MAP_BYTES, 0) == 0

    cpdef bint is_resident(self, uint64_t address, uint64_t nbytes, bint scans=True) noexcept:
        """Whether all pages are in memory: then reading them takes no longer than the copy.

        A page is absent if the process has not touched it yet, if it is swapped out, or if it
        belongs to a file that must still be read, maybe over a network. Unmapped memory may count
        as resident, because reading it fails at once.

        Parameters
        ----------
        address, nbytes : int
        scans : bool
            Whether to use PAGEMAP_SCAN, available since Linux 6.7: a fifth of the time.
        """
        return self.pagemap_fd >= 0 and not address >> 63 and not has_page(
            self.pagemap_fd, address, nbytes, PAGE_IS_PRESENT, 0, scans
        )

    def lives(self):
        """Whether the process still has the memory that it had when this object was made."""
        return not self.has_ended()

    def duplicate(self):
        """Return a new descriptor, readable once the process has ended; -1 without pidfds."""
        return os.dup(self.pidfd) if self.pidfd >= 0 else -1


def _sees_own_processes(pid):
    """Whether /proc belongs to the pid namespace of this process."""
    try:
        return os.readlink("/proc/self") == str(pid)
    except OSError:
        return False


def process_of(pid):
    """Return the process that has this pid now.

    Parameters
    ----------
    pid : int

    Returns
    -------
    Process
        The same object as before, as long as the process lives.

    Raises
    ------
    OSError
        As `Process`.
    """
    process = _processes.get(pid)
    if process is None or (<Process> process).has_ended():
        process = _processes[pid] = Process(pid)
    return process


@cython.auto_pickle(False)
@cython.final
cdef class Secret:
    """Random bytes in the memory of this process, by which a peer verifies that it reads it.

    Each connection has its own secret: copies of a running process (snapshots of a virtual machine)
    have the same memory, so a shared secret could not distinguish them.

    Attributes
    ----------
    address : int
    nonce : bytes
        The bytes at that address, as long as this object lives and is not revoked.
    """

    def __cinit__(self):
        self.data = <char *> malloc(NONCE_BYTES)
        if self.data == NULL:
            raise MemoryError()
        self.nonce = os.urandom(NONCE_BYTES)
        memcpy(self.data, <const char *> self.nonce, NONCE_BYTES)

    def __dealloc__(self):
        free(self.data)

    @property
    def address(self):
        return <uint64_t> self.data

    def touch(self):
        """Make the bytes resident: a peer is about to read them."""
        (<volatile char *> self.data)[0] = (<const char *> self.nonce)[0]

    cpdef void revoke(self) noexcept:
        """Overwrite the bytes: what a peer reads from now on is not meant for it any more."""
        memset(self.data, 0, NONCE_BYTES)
        fence()


cdef uint64_t address_of(const Slot *slot) noexcept nogil:
    """The address of a frame in the sender, from its descriptor."""
    cdef uint64_t address
    memcpy(&address, slot.descriptor, sizeof(address))
    return address


cdef int read_memory(int pid, char *data, uint64_t address, size_t nbytes) noexcept nogil:
    """Copy out of another process; 0, or the errno if not everything could be read."""
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


cdef int check_seal(int pid, const Seal *seal) noexcept nogil:
    """Read a secret again: 0; REVOKED if it was revoked; or the errno if it cannot be read."""
    cdef char content[NONCE_BYTES]
    cdef int error
    if seal.address == 0:
        return 0
    error = read_memory(pid, content, seal.address, NONCE_BYTES)
    if error == 0 and memcmp(content, seal.nonce, NONCE_BYTES):
        error = REVOKED
    return error


def attach(pid, address, expected):
    """Find the peer's process, and verify by its secret that it can be read.

    Parameters
    ----------
    pid, address, expected
        As for `probe`.

    Returns
    -------
    (Process or None, str)
        The process and an empty string, or None and the reason.
    """
    reason = _objection(pid, address, expected)
    if reason:
        return None, reason
    try:
        process = process_of(pid)
    except ProcessLookupError:
        return None, f"there is no process {pid} here: another host or pid namespace"
    except OSError as error:
        return None, str(error)
    reason = probe(pid, address, expected, process)
    if not reason and (<Process> process).has_ended():
        reason = f"process {pid} has ended"
    return (None, reason) if reason else (process, "")


def _objection(pid, address, expected):
    if pid == 0:
        return "the peer's process cannot be seen from here: another pid namespace"
    if len(expected) != NONCE_BYTES or not 0 < pid < 1 << 31 or not 0 < address < 1 << 63:
        return (
            "the peer's description of its memory is invalid: use the same release of dask-fabric "
            "on both sides (or it is a foreign peer)"
        )
    return ""


def probe(pid, address, expected, Process process=None):
    """Check whether the process *pid* has the announced secret, and can be read.

    Parameters
    ----------
    pid : int
        As this process sees it.
    address : int
    expected : bytes
        The secret that the peer announced.
    process : Process, optional
        That process, if known: shows whether the page is resident.

    Returns
    -------
    str
        The reason why not; empty if it can.

    Notes
    -----
    A page that is not resident may arrive late or never (swap, a network, userfaultfd(2)). A thread
    reads it, and the probe gives up after `PROBE_SECONDS`.
    """
    reason = _objection(pid, address, expected)
    if reason:
        return reason
    if process is not None and process.is_resident(address, NONCE_BYTES):
        error, content = _read_secret(pid, address)
    else:
        error, content = _read_secret_in_time(pid, address)
    if error == EPERM:
        return (
            "process_vm_readv is not permitted: another user or user namespace, a restrictive "
            "kernel.yama.ptrace_scope, or a container without SYS_PTRACE"
        )
    if error == ESRCH:
        return f"there is no process {pid} here: another host or pid namespace"
    if error == ETIMEDOUT:
        return f"the memory of process {pid} could not be read within {PROBE_SECONDS * 1e3:.0f} ms"
    if error and error != EFAULT:
        return f"process_vm_readv failed: {os.strerror(error)}"
    if error or content != expected:
        return f"process {pid} is another one here: another host or pid namespace"
    return ""


def _read_secret(int pid, uint64_t address):
    """Read a secret; return an errno, 0 for none, and the bytes."""
    cdef char content[NONCE_BYTES]
    cdef int error
    with nogil:
        error = read_memory(pid, content, address, NONCE_BYTES)
    return error, b"" if error else content[:NONCE_BYTES]


def _read_secret_in_time(pid, address):
    """As `_read_secret`, in a thread, which is abandoned if it does not end in time."""
    results = []
    thread = threading.Thread(
        target=lambda: results.append(_read_secret(pid, address)), name="fabric-probe", daemon=True
    )
    thread.start()
    thread.join(PROBE_SECONDS)
    return results[0] if results else (ETIMEDOUT, b"")


def allow_peers():
    """Let processes of the same user read this one, if Yama requires a permission for that.

    Notes
    -----
    With kernel.yama.ptrace_scope 1 a process may be read only by its ancestors and by those that it
    permits; see prctl(2), PR_SET_PTRACER.
    """
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)
