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

from typing import Final

PROBE_SECONDS = 0.05

class Process:
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

    pid: Final[int]

    def __init__(self, pid: int): ...
    def is_resident(self, address: int, nbytes: int, scans: bool = True) -> bool:
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
    def lives(self):
        """Whether the process still has the memory that it had when this object was made."""
    def duplicate(self):
        """Return a new descriptor, readable once the process has ended; -1 without pidfds."""

class Secret:
    """Random bytes in the memory of this process, by which a peer verifies that it reads it.

    Each connection has its own secret: copies of a running process (snapshots of a virtual machine)
    have the same memory, so a shared secret could not distinguish them.

    Attributes
    ----------
    address : int
    nonce : bytes
        The bytes at that address, as long as this object lives and is not revoked.
    """

    nonce: Final[bytes]

    def __init__(self): ...
    @property
    def address(self): ...
    def touch(self):
        """Make the bytes resident: a peer is about to read them."""
    def revoke(self) -> None:
        """Overwrite the bytes: what a peer reads from now on is not meant for it any more."""

def process_of(pid: int) -> Process:
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

def attach(pid, address, expected) -> tuple[Process | None, str]:
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

def probe(pid: int, address: int, expected: bytes, process: Process | None = None) -> str:
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

def allow_peers():
    """Let processes of the same user read this one, if Yama requires a permission for that.

    Notes
    -----
    With kernel.yama.ptrace_scope 1 a process may be read only by its ancestors and by those that it
    permits; see prctl(2), PR_SET_PTRACER.
    """
