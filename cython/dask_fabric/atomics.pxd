"""Numbers with one writer at a time, under a lock or the GIL, that any thread may read."""

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
