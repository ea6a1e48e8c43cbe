"""Copies out of the memory of other processes, by native threads."""

from libc.stdint cimport uint64_t

from dask_fabric.engine.mailbox cimport Mailbox

cdef struct Copy:
    char *data                  # where to
    uint64_t address            # where from, in the other process
    uint64_t nbytes

cdef uint64_t submit_copies(
    Mailbox *mailbox, int pid, const Copy *copies, size_t copy_count
) except 0
cdef bint cancel_copies(uint64_t name) noexcept nogil
