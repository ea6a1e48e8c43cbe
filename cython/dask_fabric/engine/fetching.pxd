"""Fetching what a peer offers, by the path of the offer."""

from libc.stdint cimport uint64_t

from dask_fabric.engine.port cimport Port
from dask_fabric.wire.offers cimport Offers

cdef int fetch_here(int pid, Offers offers) noexcept
cdef uint64_t start_copies(Port port, int pid, Offers offers, object link) except 0
cdef uint64_t start_receive(Port port, uint64_t token, Offers offers, object link) except 0
cdef double patience_seconds(Offers offers) except -1
