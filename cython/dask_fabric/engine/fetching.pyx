"""Fetching what a peer offers, by the path of the offer."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from dask_fabric.engine.copies cimport Copy
from dask_fabric.engine.port cimport Port
from dask_fabric.engine.transits cimport Piece
from dask_fabric.paths.cma cimport read_memory
from dask_fabric.wire.offers cimport Offer, Offers


# Until a fetch by UCX is given up: what its own timeouts take, and the time of the slowest link.
PATIENCE_SECONDS = 10.0
SLOWEST_BYTES_PER_SECOND = 50e6


cdef int fetch_here(int pid, Offers offers) noexcept:
    """Copy out of the peer's memory, here and now; 0, or the errno of what could not be read."""
    cdef Offer *offer
    cdef uint32_t index
    cdef int error = 0
    for index in range(offers.count):
        offer = &offers.items[index]
        error = read_memory(pid, offer.data, offer.address, offer.nbytes)
        if error:
            break
    return error


cdef uint64_t start_copies(Port port, int pid, Offers offers, object link) except 0:
    """Have the engine copy out of the peer's memory."""
    cdef uint32_t index
    cdef Copy *copies = <Copy *> malloc(offers.count * sizeof(Copy))
    if copies == NULL:
        raise MemoryError()
    for index in range(offers.count):
        copies[index] = Copy(
            offers.items[index].data, offers.items[index].address, offers.items[index].nbytes
        )
    try:
        return port.submit_copies(pid, copies, offers.count, link)
    finally:
        free(copies)


cdef uint64_t start_receive(Port port, uint64_t token, Offers offers, object link) except 0:
    """Tell UCX where the frames go."""
    cdef uint32_t index
    cdef Piece *pieces = <Piece *> malloc(offers.count * sizeof(Piece))
    if pieces == NULL:
        raise MemoryError()
    for index in range(offers.count):
        pieces[index] = Piece(
            offers.items[index].data, offers.items[index].nbytes, offers.items[index].index
        )
    try:
        return port.submit_transit(token, offers.sequence, pieces, offers.count, False, link)
    finally:
        free(pieces)


cdef double patience_seconds(Offers offers) except -1:
    return PATIENCE_SECONDS + offers.nbytes / SLOWEST_BYTES_PER_SECOND
