"""The `cma` path: identifies the peer's process, and reads its memory."""

from libc.stdint cimport uint64_t

from dask_fabric.wire.frames cimport Slot

cdef class Process:
    cdef readonly int pid
    cdef int pidfd              # readable once all threads have ended; -1 for none
    cdef int pagemap_fd         # stays bound to the memory that the process had; -1 for none
    cdef object __weakref__

    cdef _open_pagemap(self)
    cdef bint has_ended(self) noexcept
    cpdef bint is_resident(self, uint64_t address, uint64_t nbytes, bint scans=*) noexcept

cdef int read_memory(int pid, char *data, uint64_t address, size_t nbytes) noexcept nogil
cdef uint64_t address_of(const Slot *slot) noexcept nogil
