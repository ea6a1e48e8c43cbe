"""Memory files: memory of this process that other processes of its host can map."""

from libc.stdint cimport uint32_t, uint64_t, uintptr_t

# Where a frame lies; as a descriptor on the wire it is 24 bytes, little-endian.
cdef struct Place:
    uint64_t origin             # the process whose file it is
    uint32_t slab
    uint32_t generation         # of the slab: it has another one when it is used again
    uint64_t offset             # in the slab

# What `map_place` gives.
cdef enum Mapped:
    MAPPED = 0
    UNKNOWN_ORIGIN = 1          # its file is not known yet
    STALE = 2                   # the slab is used for something else, or never was
    NOT_MAPPED = 3              # the kernel refuses

cdef struct Origin
cdef struct Mapping

# Of this process. Slabs are numbered from 1; 0 is none.
cdef uint32_t obtain_slab(
    Py_ssize_t capacity_bytes, Py_ssize_t mapped_bytes, int size_class, char **data) noexcept nogil
cdef bint release_slab(
    uint32_t number, uint32_t its_epoch, char *data, Py_ssize_t mapped_bytes) noexcept nogil
cdef bint keeps_pages(uint32_t number, uint32_t its_epoch) noexcept nogil
cdef void reopen_slab(uint32_t number, uint32_t its_epoch) noexcept nogil
cdef void free_slab(
    uint32_t number, uint32_t its_epoch, char *data, Py_ssize_t mapped_bytes) noexcept nogil
cdef uint32_t next_reusable(
    char **data, Py_ssize_t *capacity_bytes, int *size_class, bint looks_at_all) noexcept nogil
cdef bint needs_care() noexcept nogil
cdef bint has_room(Py_ssize_t mapped_bytes) noexcept nogil
cdef bint serves(Py_ssize_t nbytes) noexcept nogil
cdef uint32_t current_epoch() noexcept nogil
cdef void make_huge_pages(const char *data, uint64_t nbytes) noexcept nogil
cdef void keep_small_pages(uint32_t number, uint32_t its_epoch) noexcept nogil

# For the path that maps frames.
cdef bint describe_place(
    uintptr_t address, uint64_t nbytes, uint64_t peer, Place *place) noexcept nogil
cdef Mapped map_place(
    const Place *place, uint64_t nbytes, Mapping **mapping, char **data) noexcept nogil
cdef void unmap(Mapping *mapping) noexcept nogil
