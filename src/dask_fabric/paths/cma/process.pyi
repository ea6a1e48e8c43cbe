"""The `cma` path: a frame is read out of the memory of its sender, a process of this host.

Cross memory attach is process_vm_readv(2): one copy, made by the reader alone. Whether a process
may do that is found out by doing it: each has a secret at an address that it tells its peers.

A pid is not enough to read by. It may come to name another process, whose bytes would then be taken
for the peer's. So a process is held by two descriptors (`Process`): of the process itself, and of
its page map, which stays that of the same memory. They are looked at *after* each copy: if the
process has not ended by then, then the pid was its own all the time.
"""

from typing import Final

PROBE_SECONDS = 0.05

class Process:
    """A process of this host, whose memory may be read.

    Parameters
    ----------
    pid : int
        In the pid namespace of this process.

    Raises
    ------
    OSError
        There is no such process, or nothing here would tell that it has ended.

    Notes
    -----
    See pidfd_open(2), and the kernel's Documentation/admin-guide/mm/pagemap.rst.
    """

    pid: Final[int]

    def __init__(self, pid: int): ...
    def is_resident(self, address: int, nbytes: int, scans: bool = True) -> bool:
        """Whether all pages are in memory, so that to read them takes no longer than to copy them.

        They are not where the process has not touched them yet, where they are swapped out, and
        where they are those of a file that has still to be read, maybe over a network. What is not
        mapped may be taken for resident, since to read there fails at once.

        Parameters
        ----------
        address, nbytes : int
        scans : bool
            Whether to ask by PAGEMAP_SCAN, which Linux has since 6.7: a fifth of the time.
        """
    def lives(self):
        """Whether the process has still the memory that it had when this was made."""
    def duplicate(self):
        """Give a new descriptor that is readable when the process has ended; -1 without pidfds."""

class Secret:
    """Random bytes in the memory of this process, by which a peer knows that it reads this one.

    Each connection has its own: copies of a running process (snapshots of a virtual machine) have
    the same memory, and could each take itself for the other one.

    Attributes
    ----------
    address : int
    nonce : bytes
        What is there, for as long as this object lives.
    """

    nonce: Final[bytes]

    def __init__(self): ...
    @property
    def address(self): ...
    def touch(self):
        """Have the bytes in memory, if they were swapped out: a peer is about to read them."""

def process_of(pid: int) -> Process:
    """Give the process that has this pid now.

    Parameters
    ----------
    pid : int

    Returns
    -------
    Process
        The same as before, as long as that lives.

    Raises
    ------
    OSError
        As `Process`.
    """

def attach(pid, address, expected) -> tuple[Process | None, str]:
    """Give the process that is to be read, if it is the one that told its secret.

    Parameters
    ----------
    pid, address, expected
        As for `probe`.

    Returns
    -------
    (Process or None, str)
        With the reason, empty where there is a process.
    """

def probe(pid: int, address: int, expected: bytes, process: Process | None = None) -> str:
    """Find out whether the process *pid* is the one that told its secret, and can be read.

    Parameters
    ----------
    pid : int
        As this process sees it.
    address : int
    expected : bytes
        What the peer says is there.
    process : Process, optional
        That process, if it is known: tells whether the page is in memory.

    Returns
    -------
    str
        Why not; empty where it can.

    Notes
    -----
    A page that is not in memory may come late or never (swap, a network, userfaultfd(2)): a thread
    waits for it, and it is given up after `PROBE_SECONDS`.
    """

def allow_peers():
    """Let processes of the same user read this one, where Yama asks for such a permission.

    Notes
    -----
    With kernel.yama.ptrace_scope 1 a process may be read by its ancestors and by whom it names; see
    prctl(2), PR_SET_PTRACER.
    """
