"""Memory files: memory of this process that other processes of its host can map.

Theory of operation
-------------------
A process has one *memory file* (memfd_create(2)), which it shares with peers: they get a read-only
descriptor. The file is cut into *slabs*; each holds one received array, or one result.

The owner writes a slab through a shared mapping. Before it offers the slab for the first time it
*freezes* it: it maps its own addresses anew, private and copy-on-write. From then on the file keeps
the content of that moment. The owner's later writes go to pages of its own, and so do those of the
peers, who map the file privately too. Nobody ever sees another's writes, and all arrays stay
writeable. A frozen slab can be offered again while no page of the owner's mapping is private; the
kernel's page map tells (`_has_changed`).

A slab is used again when its array is dead and no peer has it mapped. A peer *claims* a slab before
it maps it. Its claims are counters in a table of its own, one for each slab, which the owner can
read. Owner and peer never write to the same memory, and neither waits for the other:

    peer:   claims[slab] += 1;       then read generation[slab]; if it is another one: claims -= 1
    owner:  if the claims of all peers are 0: generation[slab] += 1;   then read the claims again;
            if one is not 0 now: try later

Both steps are sequentially consistent, so that at least one of the two sees the other. A peer that
dies loses its claims: its connection to the path's exchange of descriptors ends, and the owner
drops its table. A peer that lies about its claims can keep slabs from being used again
(`max_bytes` bounds that), or see wrong content itself.

The file of an owner that has died lives on while a peer has a slab of it mapped. Only the peers
can free the other slabs then, and none knows what the others have. So a peer also holds a read lock
(fcntl(2), "open file description locks") on byte N of the file while it has slab N mapped. The
peers of a dead owner take the write lock of each slab, which fails where anybody has it, give the
slab another generation, and free its pages.

A forked child has all mappings of its parent. Before a fork all slabs are frozen, and each mapping
of a peer's slab is claimed once more for the child; what was alive at a fork is not used again
until that child has ended, which a pipe shows. The child itself begins without files. All of that
is done by handlers of C (pthread_atfork): code of Python that runs at a fork may free arrays.

Everything here is under one mutex, and needs no GIL. Native threads that trim the pool call it.
"""

def open_file_of_process() -> int:
    """Make the file of this process, if it has none.

    Returns
    -------
    int
        By which peers know the process: random, and not 0.

    Raises
    ------
    UnavailableError
        The kernel or the limits of this process do not allow it; the message says why.
    """

def descriptors():
    """Give new read-only descriptors of the file of this process and of the table of its slabs."""

def add_client(key: int, id: int, claims_fd: int):
    """Let a peer map slabs of this process.

    Parameters
    ----------
    key : int
        Of its connection, for `remove_client`.
    id : int
        Its own.
    claims_fd : int
        Of its claims; the caller closes it.

    Raises
    ------
    ValueError, OSError
        The descriptor is not what it must be.
    """

def remove_client(key: int):
    """A peer has ended: its claims are void."""

def new_claims() -> tuple[int, int]:
    """Make a table of claims, for the slabs of one process.

    Returns
    -------
    (int, int)
        A descriptor for `add_origin`, and a read-only one for that process.
    """

def add_origin(id: int, its_file_fd: int, its_table_fd: int, claims_fd: int):
    """Map slabs of a peer from now on.

    Parameters
    ----------
    id : int
        Of the peer.
    its_file_fd, its_table_fd, claims_fd : int
        The caller closes them.

    Raises
    ------
    ValueError, OSError
        A descriptor is not what it must be.
    """

def remove_origin(id: int):
    """A peer has ended; what is mapped of it stays as it is. Then call `free_rest`."""

def free_rest(id: int) -> bool:
    """Free what nobody has mapped of the file of a peer that has ended.

    Returns
    -------
    bool
        False where that is to be tried again later: the peer is not quite gone, or it has forked
        children.
    """

def holds(address: int):
    """Whether memory at this address lies in the file of this process."""

def has_origin(id: int):
    """Whether slabs of a peer can be mapped."""

def has_client(id: int):
    """Whether a peer can map slabs of this process."""

def configure(*, is_enabled: bool, threshold_bytes: int, most_bytes: int):
    """Have received arrays lie in the file from now on, or not.

    Parameters
    ----------
    is_enabled : bool
        The file must have been made.
    threshold_bytes : int
        From which size on.
    most_bytes : int
        All slabs together; what is more lies elsewhere.
    """

def pause(pauses):
    """Have new memory lie elsewhere until this is called with False: memory that may be pinned."""

def statistics():
    """Figures of the file and of what is mapped, as a dict of counts and bytes."""

def try_place(origin: int, slab: int, generation: int, offset: int, nbytes: int):
    """Map a place and unmap it again, for tests; give the outcome, 0 for success."""
