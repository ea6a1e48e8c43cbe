"""The `cma` path: identifies the peer's process, and reads its memory."""

from libc.stdint cimport uint64_t

from dask_fabric.wire.frames cimport Slot

cdef enum:
    NONCE_BYTES = 16

# The secret of a peer for one connection, which it revokes at the end.
cdef struct Seal:
    uint64_t address            # 0: there is none
    char nonce[NONCE_BYTES]

cdef class Process:
    cdef readonly int pid
    cdef int pidfd              # readable once all threads have ended; -1 for none
    cdef int pagemap_fd         # stays bound to the memory that the process had; -1 for none
    cdef object __weakref__

    cdef _open_pagemap(self)
    cdef bint has_ended(self) noexcept
    cpdef bint is_resident(self, uint64_t address, uint64_t nbytes, bint scans=*) noexcept

cdef class Secret:
    cdef char *data
    cdef readonly bytes nonce

    cpdef void revoke(self) noexcept

cdef int read_memory(int pid, char *data, uint64_t address, size_t nbytes) noexcept nogil
cdef int check_seal(int pid, const Seal *seal) noexcept nogil
cdef uint64_t address_of(const Slot *slot) noexcept nogil
