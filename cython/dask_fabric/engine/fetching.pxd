"""Fetching what a peer offers: how long it may take, and doing it at once."""

from dask_fabric.wire.offers cimport Offers

cdef int fetch_here(int pid, Offers offers) noexcept
cdef double patience_seconds(Offers offers) except -1
