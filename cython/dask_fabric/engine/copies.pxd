"""Copies out of the memory of other processes, by native threads."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.engine.mailbox cimport Mailbox
from dask_fabric.wire.offers cimport Offer

cdef uint64_t COPY_BIT          # of the names of these jobs, and of no others

cdef uint64_t submit_copies(
    Mailbox *mailbox, int pid, const Offer *offers, size_t offer_count, uint64_t nbytes
) except 0
cdef bint cancel_copies(uint64_t name) noexcept nogil
cdef int64_t tend_copies(uint64_t name) noexcept nogil
cdef bint is_copying(uint64_t name) noexcept nogil
