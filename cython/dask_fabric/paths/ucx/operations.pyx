"""Sends and receives of the `ucx` path: their table, their lists, and the calls of callbacks.

All of this needs the worker's lock. An operation is named by an integer: its slot in the lower half
and a generation in the upper, so that an old name finds nothing.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, realloc

from dask_fabric.linux cimport pthread_cond_broadcast
from dask_fabric.paths.ucx.state cimport (
    ABANDONED, COMPLETE, ENDED, FAILED, FREE, REPORTING, FrameHeader, OnEnd, Operation,
    OperationList, OperationState,
)
from dask_fabric.paths.ucx.worker cimport lock, unlock, worker

cdef Operation **operations = NULL      # by slot; reused, never freed
cdef uint32_t slot_count = 0
cdef uint32_t *free_slots = NULL
cdef uint32_t free_count = 0
cdef OperationList ended, abandoned
cdef Operation *reporting = NULL        # whose callback runs

ended.first = ended.last = NULL
abandoned.first = abandoned.last = NULL


cdef Operation *new_operation(
    void *memory, size_t nbytes, int memory_kind, OnEnd on_end, void *context
) noexcept nogil:
    """Make an operation, which is in no list yet; NULL if memory is short."""
    global free_count
    cdef Operation *operation
    if free_count == 0 and not _grow():
        return NULL
    free_count -= 1
    worker.operation_count += 1
    operation = operations[free_slots[free_count]]
    operation.name += <uint64_t> 1 << 32
    operation.is_cancelled = False
    operation.error = 0
    operation.header = FrameHeader(0, 0, 0, 0, nbytes)
    operation.memory = memory
    operation.memory_kind = memory_kind
    operation.on_end = on_end
    operation.context = context
    return operation


cdef Operation *find_operation(uint64_t name) noexcept nogil:
    """The operation of that name; NULL if it was freed."""
    cdef uint32_t slot = <uint32_t> name
    if slot >= slot_count or operations[slot].name != name or operations[slot].state == FREE:
        return NULL
    return operations[slot]


cdef size_t count_of(OperationState state) noexcept nogil:
    cdef size_t count = 0
    cdef uint32_t slot
    for slot in range(slot_count):
        count += operations[slot].state == state
    return count


cdef bint _grow() noexcept nogil:
    """Double the slots; False if memory is short."""
    global operations, free_slots, slot_count, free_count
    cdef uint32_t capacity = max(<uint32_t> 64, 2 * slot_count)
    cdef void *grown = realloc(operations, capacity * sizeof(Operation *))
    if grown == NULL:
        return False
    operations = <Operation **> grown
    grown = realloc(free_slots, capacity * sizeof(uint32_t))
    if grown == NULL:
        return False
    free_slots = <uint32_t *> grown
    while slot_count < capacity:
        operations[slot_count] = <Operation *> calloc(1, sizeof(Operation))
        if operations[slot_count] == NULL:
            break
        operations[slot_count].name = slot_count
        free_slots[free_count] = slot_count
        free_count += 1
        slot_count += 1
    return free_count > 0


# ---------------------------------------------------------------- lists

cdef void put(Operation *operation, OperationList *into, OperationState state) noexcept nogil:
    """Append it to a list, after removing it from its current list, if any."""
    _take_out(operation)
    operation.state = state
    operation.in_list = into
    operation.next = NULL
    operation.previous = into.last
    if into.last == NULL:
        into.first = operation
    else:
        into.last.next = operation
    into.last = operation


cdef void _take_out(Operation *operation) noexcept nogil:
    cdef OperationList *of = operation.in_list
    if of == NULL:
        return
    if operation.previous == NULL:
        of.first = operation.next
    else:
        operation.previous.next = operation.next
    if operation.next == NULL:
        of.last = operation.previous
    else:
        operation.next.previous = operation.previous
    operation.in_list = NULL


# ---------------------------------------------------------------- ends

cdef void end(Operation *operation, int error) noexcept nogil:
    """UCX does not use its memory any more: make its callback due, unless it was cancelled."""
    if operation.is_cancelled:
        release(operation)
        return
    operation.error = error
    put(operation, &ended, ENDED)
    pthread_cond_broadcast(&worker.changed)


cdef void release(Operation *operation) noexcept nogil:
    """Free it without a callback; UCX does not use its memory."""
    _take_out(operation)
    _free(operation)


cdef void _free(Operation *operation) noexcept nogil:
    global free_count
    operation.state = FREE
    free_slots[free_count] = <uint32_t> operation.name
    free_count += 1
    worker.operation_count -= 1
    pthread_cond_broadcast(&worker.changed)


cdef void end_all(OperationList *of, int error) noexcept nogil:
    while of.first != NULL:
        end(of.first, error)


cdef void release_all(OperationList *of) noexcept nogil:
    while of.first != NULL:
        release(of.first)


cdef void abandon(Operation *operation) noexcept nogil:
    """Detach it from its endpoint, because UCX has not ended it; it is freed when UCX does."""
    operation.is_cancelled = True
    put(operation, &abandoned, ABANDONED)


cdef void release_ended_of(void *endpoint) noexcept nogil:
    """Free the ended operations of an endpoint without calling their callbacks."""
    cdef Operation *operation = ended.first
    cdef Operation *following
    while operation != NULL:
        following = operation.next
        if operation.endpoint == endpoint:
            release(operation)
        operation = following


cdef bint is_reporting(void *endpoint) noexcept nogil:
    """Whether a callback of that endpoint is running."""
    return reporting != NULL and reporting.endpoint == endpoint


cdef bint report() noexcept nogil:
    """Call the callbacks that are due, in the progress thread; the lock is released for each."""
    global reporting
    cdef Operation *operation
    cdef bint any_ended = ended.first != NULL
    while ended.first != NULL and not worker.is_stopping:
        operation = ended.first
        _take_out(operation)
        operation.state = REPORTING
        reporting = operation
        unlock()
        operation.on_end(
            operation.context, operation.name, FAILED if operation.error else COMPLETE,
            operation.error, 0 if operation.error else operation.header.nbytes,
        )
        lock()
        reporting = NULL
        _free(operation)
    return any_ended
