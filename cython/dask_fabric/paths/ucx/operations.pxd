"""Sends and receives of the `ucx` path: their table, their lists, and the calls of callbacks."""

from libc.stdint cimport uint64_t

from dask_fabric.paths.ucx.state cimport OnEnd, Operation, OperationList, OperationState

cdef Operation *new_operation(
    void *memory, size_t nbytes, int memory_kind, OnEnd on_end, void *context
) noexcept nogil
cdef Operation *find_operation(uint64_t name) noexcept nogil
cdef void put(Operation *operation, OperationList *into, OperationState state) noexcept nogil
cdef void end(Operation *operation, int error) noexcept nogil
cdef void release(Operation *operation) noexcept nogil
cdef void end_all(OperationList *operations, int error) noexcept nogil
cdef void abandon(Operation *operation) noexcept nogil
cdef void release_all(OperationList *operations) noexcept nogil
cdef void release_ended_of(void *endpoint) noexcept nogil
cdef bint is_reporting(void *endpoint) noexcept nogil
cdef bint report() noexcept nogil
cdef size_t count_of(OperationState state) noexcept nogil
