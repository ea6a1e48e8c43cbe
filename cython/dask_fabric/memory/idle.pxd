"""The idle memory of the pool, and its figures."""

from libc.stdint cimport int64_t

cdef Py_ssize_t LARGEST_BYTES       # the address space of a process
cdef int64_t NEVER_NS

cdef struct Slab:
    # Idle memory. The node lies apart from it: a late write into freed memory harms no list.
    char *data
    Py_ssize_t capacity_bytes
    int size_class
    bint is_pinned          # is in its stack alone: it has no age, and is never given back
    int64_t released_ns
    Slab *newer             # among all idle slabs
    Slab *older
    Slab *above             # in the stack of its class
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

# Those of buffers in use, hits, misses and pinned_bytes change under the GIL only; all others under
# the lock.
cdef Figures figures

cdef inline Py_ssize_t class_bytes(int size_class) noexcept nogil:
    return <Py_ssize_t>(4 + size_class % 4) << (14 + size_class // 4)

cdef Figures snapshot() noexcept nogil
cdef void set_limits(Py_ssize_t max_idle_bytes, double idle_seconds,
                     Py_ssize_t pressure_limit_bytes) noexcept nogil
cdef Slab *take_idle(Py_ssize_t nbytes, int size_class) noexcept nogil
cdef void keep_idle(Slab *slab) noexcept nogil
cdef Py_ssize_t trim_to(Py_ssize_t target_bytes, int64_t expiry_ns) noexcept nogil
cdef void trim_expired() noexcept nogil
