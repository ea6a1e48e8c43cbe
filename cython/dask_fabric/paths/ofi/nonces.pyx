"""Nonces in registered memory, and room for those that are read from peers.

Theory of operation
-------------------
A nonce is 16 random bytes that a peer reads, to find out whether it reads the right memory. The
process has one, by which a peer is proven before the first frame (`worker`). Each comm has one
more, which is overwritten before the comm frees or changes frames on offer (`Nonce.revoke`). The
peer reads it after all frames of a transfer: if it has changed, the frames may be something else.
The end of the stream alone does not show that: the network may deliver it late, or lose it.

All nonces, and what is read of the peers', are *cells* of a few pages that are registered once:
a card has room for a limited number of registrations, and comms are many.
"""

import os

cimport cython
from libc.errno cimport ENOMEM
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from dask_fabric.atomics cimport fence
from dask_fabric.linux cimport (
    pthread_atfork, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from dask_fabric.memory.system cimport PAGE_BYTES
from dask_fabric.paths.ofi.regions cimport Slab, register, release, remote_address

cdef pthread_mutex_t mutex      # guards the unused cells
cdef Cell *unused = NULL

pthread_mutex_init(&mutex, NULL)


cdef void _forked_in_child() noexcept nogil:
    """The parent's threads may hold the lock."""
    pthread_mutex_init(&mutex, NULL)


# By C: code of Python that runs at a fork may free nonces.
if pthread_atfork(NULL, NULL, _forked_in_child):
    raise MemoryError("cannot register a handler of forks")


@cython.auto_pickle(False)
@cython.final
cdef class Nonce:
    """Random bytes of this process in memory that peers can read.

    Attributes
    ----------
    value : bytes
        The bytes there, until they are revoked.

    Raises
    ------
    OSError
        No memory can be registered.
    """

    def __cinit__(self):
        with nogil:
            self.cell = take_cell()
        if self.cell == NULL:
            raise OSError(ENOMEM, "libfabric: memory cannot be registered: see ulimit -l")
        self.value = os.urandom(NONCE_BYTES)
        memcpy(self.cell.data, <const char *> self.value, NONCE_BYTES)

    def __dealloc__(self):
        if self.cell != NULL:
            self.revoke()
            give_back(self.cell)

    @property
    def place(self):
        """The address and the key by which a peer reads it."""
        return remote_address(self.cell.registration, self.cell.data), self.cell.registration.key

    cpdef void revoke(self) noexcept:
        """Overwrite the bytes: what a peer reads from now on is not meant for it any more."""
        memset(self.cell.data, 0, NONCE_BYTES)
        fence()


cdef Cell *take_cell() noexcept nogil:
    """Give room for a nonce; NULL if no memory can be registered."""
    global unused
    cdef Cell *cell
    pthread_mutex_lock(&mutex)
    if unused == NULL:
        _add_page()
    cell = unused
    if cell != NULL:
        unused = cell.next
    pthread_mutex_unlock(&mutex)
    return cell


cdef void _add_page() noexcept nogil:
    """Register one more page, and cut it into cells; no effect if that fails."""
    global unused
    cdef size_t count = PAGE_BYTES // NONCE_BYTES, index
    cdef char *page = <char *> calloc(count, NONCE_BYTES)
    cdef Cell *cells = <Cell *> calloc(count, sizeof(Cell))
    cdef Registration *registration = NULL
    if page != NULL and cells != NULL:
        registration = register(page, count * NONCE_BYTES, Slab(NULL, 0))
    if registration == NULL:
        free(page)
        free(cells)
        return
    for index in range(count):
        cells[index] = Cell(unused, page + index * NONCE_BYTES, registration)
        unused = &cells[index]


cdef void give_back(Cell *cell) noexcept nogil:
    global unused
    pthread_mutex_lock(&mutex)
    cell.next = unused
    unused = cell
    pthread_mutex_unlock(&mutex)


cdef void drop_cells() noexcept nogil:
    """After a start that failed, with no cell in use: end their registrations."""
    global unused
    cdef Registration *last = NULL
    pthread_mutex_lock(&mutex)
    while unused != NULL:
        if unused.registration != last:
            last = unused.registration
            release(last)
        unused = unused.next
    pthread_mutex_unlock(&mutex)


cdef int copy_seal(Seal *seal, address, key, bytes nonce) except -1:
    """Write what a peer's description says of a nonce."""
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
    seal.place = Place(address, key)
    memcpy(seal.nonce, <const char *> nonce, NONCE_BYTES)
    return 0
