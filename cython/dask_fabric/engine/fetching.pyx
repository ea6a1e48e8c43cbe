"""Fetching what a peer offers: how long it may take, and doing it at once."""

from libc.stdint cimport uint32_t

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


cdef double patience_seconds(Offers offers) except -1:
    return PATIENCE_SECONDS + offers.nbytes / SLOWEST_BYTES_PER_SECOND
