"""Memory of this process that is registered with libfabric."""

from libc.stdint cimport uint64_t, uintptr_t

from dask_fabric.paths.ofi.libfabric cimport Domain, Endpoint, Region

cdef struct Registration:
    uintptr_t begin
    uintptr_t end
    Region *region
    uint64_t key
    void *desc                  # for reads into it
    int user_count
    bint is_of_pool             # kept until its memory goes back to the system
    bint is_stale               # not to be used again: its memory is about to change

# Memory of the pool that a frame lies in; see `memory.arrays.slab_of`.
cdef struct Slab:
    char *data
    Py_ssize_t nbytes

cdef struct Figures:
    size_t count
    size_t nbytes
    size_t made_count           # so far

cdef void set_domain(Domain *domain, Endpoint *endpoint, int mr_mode) noexcept nogil
cdef bint needs_destinations() noexcept nogil
cdef Registration *register(const char *data, uint64_t nbytes, Slab slab) noexcept nogil
cdef void release(Registration *registration) noexcept nogil
cdef void release_key(const char *data, uint64_t key) noexcept nogil
cdef uint64_t remote_address(const Registration *registration, const char *data) noexcept nogil
cdef void forget(const char *data, Py_ssize_t nbytes) noexcept nogil
cdef Figures figures() noexcept nogil
