"""The idle slabs of the pool, and its statistics."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from dask_fabric.memory.system cimport CACHE_LINE_BYTES, whole_pages

cdef Py_ssize_t LARGEST_BYTES       # the address space of a process
cdef int64_t NEVER_NS

cdef struct Slab:
    # Idle memory. The list node is kept out of band, so that a use-after-free cannot corrupt a
    # list.
    char *data
    Py_ssize_t capacity_bytes
    int size_class
    bint is_pinned          # never freed: it is only in the stack of its class, not in the list
    bint has_small_pages    # for its last frame; see `pool.use_small_pages`
    uint32_t number         # in the memory file; 0: not in it
    uint32_t epoch          # of the memory file
    int64_t released_ns
    uint64_t release_number
    Slab *newer             # in the list of all idle slabs, by age
    Slab *older
    Slab *above             # in the stack (free list) of its class
    Slab *below

cdef struct Figures:        # as a dict, the statistics
    Py_ssize_t in_use_bytes
    Py_ssize_t in_use_count
    Py_ssize_t idle_bytes
    Py_ssize_t idle_count
    Py_ssize_t peak_idle_bytes
    Py_ssize_t hits_count
    Py_ssize_t misses_count
    Py_ssize_t evicted_bytes
    Py_ssize_t trimmed_bytes
    Py_ssize_t pinned_bytes
    Py_ssize_t max_idle_bytes
    Py_ssize_t pressure_limit_bytes
    double idle_seconds

# `snapshot` fills the fields that are also in `Usage`. The others change under the lock; the limits
# also need the GIL.
cdef Figures figures

cdef struct Usage:          # changes under the GIL, not the lock: read and written as atomics
    Py_ssize_t in_use_bytes
    Py_ssize_t in_use_count
    Py_ssize_t hits_count
    Py_ssize_t misses_count
    Py_ssize_t pinned_bytes

cdef Usage usage

cdef enum:
    STEP_COUNT = 32         # classes per doubling: a slab exceeds its frame by at most 1/32

cdef inline Py_ssize_t class_bytes(int size_class) noexcept nogil:
    return <Py_ssize_t>(STEP_COUNT + size_class % STEP_COUNT) << (11 + size_class // STEP_COUNT)

cdef Figures snapshot() noexcept nogil
cdef bint has_idle() noexcept nogil
cdef void set_limits(Py_ssize_t max_idle_bytes, double idle_seconds,
                     Py_ssize_t pressure_limit_bytes) noexcept nogil
cdef Slab *take_idle(int size_class, Py_ssize_t most_bytes) noexcept nogil
cdef void keep_idle(Slab *slab) noexcept nogil
cdef Py_ssize_t trim_to(Py_ssize_t target_bytes, int64_t expiry_ns) noexcept nogil
cdef void trim_expired() noexcept nogil


cdef inline Py_ssize_t file_bytes(Py_ssize_t capacity_bytes) noexcept nogil:
    """How much of the memory file a slab takes: its data may begin anywhere in a cache line."""
    return whole_pages(capacity_bytes + CACHE_LINE_BYTES)
