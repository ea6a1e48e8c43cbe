"""The `cma` path: a frame is read out of the memory of its sender, a process of this host."""

from libc.stdint cimport uint64_t

from dask_fabric.wire.frames cimport Slot

cdef class Process:
    cdef readonly int pid
    cdef int pidfd              # readable when all threads have ended; -1 where there is none
    cdef int pagemap_fd         # of the memory that the process had when this was made; or -1
    cdef object __weakref__

    cdef _open_pagemap(self)
    cdef bint has_ended(self) noexcept
    cpdef bint is_resident(self, uint64_t address, uint64_t nbytes, bint scans=*) noexcept
    cdef bint _are_present(self, uint64_t page, uint64_t left_count) noexcept

cdef int read_memory(int pid, char *data, uint64_t address, size_t nbytes) noexcept nogil
cdef uint64_t address_of(const Slot *slot) noexcept nogil
