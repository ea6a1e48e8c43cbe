"""Numbers that several threads, or processes, use at once."""

from libc.stdint cimport int32_t, uint32_t

# With one writer at a time, under a lock or the GIL; any thread may read them.
cdef extern from *:
    """
    #include <Python.h>

    static inline Py_ssize_t dask_fabric_relaxed(const Py_ssize_t *number) {
        return __atomic_load_n(number, __ATOMIC_RELAXED);
    }
    /* With a single writer no locked instruction is needed. */
    static inline void dask_fabric_add_relaxed(Py_ssize_t *number, Py_ssize_t more) {
        __atomic_store_n(number, *number + more, __ATOMIC_RELAXED);
    }
    """
    Py_ssize_t relaxed "dask_fabric_relaxed" (const Py_ssize_t *number) noexcept nogil
    void add_relaxed "dask_fabric_add_relaxed" (Py_ssize_t *number, Py_ssize_t more) noexcept nogil

# In memory that two processes share, in one order for both.
cdef extern from *:
    """
    #include <stdint.h>
    static inline void dask_fabric_claim(int32_t *count, int32_t more) {
        __atomic_add_fetch(count, more, __ATOMIC_SEQ_CST);
    }
    static inline int32_t dask_fabric_claims(const int32_t *count) {
        return __atomic_load_n(count, __ATOMIC_SEQ_CST);
    }
    static inline uint32_t dask_fabric_generation(const uint32_t *number) {
        return __atomic_load_n(number, __ATOMIC_SEQ_CST);
    }
    static inline void dask_fabric_next_generation(uint32_t *number) {
        __atomic_add_fetch(number, 1, __ATOMIC_SEQ_CST);
    }
    /* What was written before is seen by everybody who sees what is written after it. */
    static inline void dask_fabric_fence(void) {
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    }
    """
    void claim "dask_fabric_claim" (int32_t *count, int32_t more) noexcept nogil
    int32_t claims_at "dask_fabric_claims" (const int32_t *count) noexcept nogil
    uint32_t generation_at "dask_fabric_generation" (const uint32_t *number) noexcept nogil
    void next_generation "dask_fabric_next_generation" (uint32_t *number) noexcept nogil
    void fence "dask_fabric_fence" () noexcept nogil
