"""Frames on their way through UCX: one job for all that one message sends or receives so.

UCX ends each frame by itself, in its own thread; the last one ends the job.
"""

import logging
import os

cimport cython
from libc.errno cimport ENOTCONN
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from dask_fabric.clock cimport now_ns
from dask_fabric.jobs.completions cimport Job
from dask_fabric.jobs.mailbox cimport Completion, Ended, Mailbox, post
from dask_fabric.linux cimport (
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from dask_fabric.paths.ucx cimport core as ucx
from dask_fabric.paths.ucx.libucp cimport HOST
from dask_fabric.paths.stream cimport COMPLETE, FAILED
from dask_fabric.wire.frames cimport FrameSet, Slot
from dask_fabric.wire.records cimport HOST_MEMORY

logger = logging.getLogger(__name__)

cdef struct Transit:
    uint64_t name
    uint64_t tag
    uint64_t *operations        # of UCX; 0 where it did not take one
    size_t operation_count
    size_t left_count           # of those that have not ended, and one more while they start
    int error
    size_t moved_bytes
    Mailbox *mailbox
    Ended *ended                # owned until it is posted
    Transit *next

cdef struct Engine:
    pthread_mutex_t mutex       # guards everything below, and every transit
    Transit *first              # all that have not ended
    uint64_t transit_count      # ever

cdef Engine engine

_has_warned = False


def _reset():
    """Also in a forked child, whose parent's transits are none of its own."""
    memset(&engine, 0, sizeof(engine))
    pthread_mutex_init(&engine.mutex, NULL)


_reset()
os.register_at_fork(after_in_child=_reset)


@cython.auto_pickle(False)
@cython.final
cdef class FrameJob(Job):
    """Frames of one message that are sent or received by one endpoint."""

    cdef uint64_t _start(self, Mailbox *mailbox) except 0:
        cdef Transit *transit = _new_transit(mailbox, self.tag, self.frames.count)
        cdef uint64_t name
        if transit == NULL:
            raise MemoryError()
        name = transit.name
        with nogil:
            _submit(transit, self.token, self.frames, self.device_kind, self.is_sending)
        return name

    cdef bint _end(self) noexcept:
        cdef bint is_unended
        with nogil:
            is_unended = _cancel(self.name)
        self.cancelled_ns = now_ns()
        return is_unended

    cdef bint _is_in_use(self) except -1:
        """Whether UCX may still use the memory.

        With a dead peer nothing makes it go on: it would do that when the peer had made room. So
        its memory is freed after a second.
        """
        global _has_warned
        cdef bint nothing_left
        with nogil:
            nothing_left = ucx.abandoned_count() == 0
        if nothing_left:
            _has_warned = False
            return False
        if now_ns() - self.cancelled_ns < ucx.STUCK_NS:
            return True
        if _is_dead(self.peer_pid):
            return False
        if not _has_warned:
            _has_warned = True
            logger.warning("UCX has not let go of frames of a lost peer; they stay in memory")
        return True


cdef void _submit(
    Transit *transit, uint64_t token, FrameSet frames, int device_kind, bint sending
) noexcept nogil:
    cdef uint64_t operation
    cdef size_t index
    cdef Slot *slot
    cdef int kind
    for index in range(transit.operation_count):
        slot = &frames.slots[index]
        kind = HOST if slot.memory == HOST_MEMORY else device_kind
        if sending:
            operation = ucx.offer(
                token, frames.sequence, slot.index, slot.data, slot.nbytes, kind, _on_end, transit
            )
        else:
            operation = ucx.post(
                token, frames.sequence, slot.index, slot.data, slot.nbytes, kind, _on_end, transit
            )
        transit.operations[index] = operation
        if operation == 0:
            _count_down(transit, ENOTCONN, 0)
    _count_down(transit, 0, 0)


cdef bint _cancel(uint64_t name) noexcept nogil:
    """End a job now, if it has not ended already; True if UCX may still use its memory."""
    cdef Transit *transit
    cdef size_t index
    cdef bint is_unended = False
    pthread_mutex_lock(&engine.mutex)
    transit = engine.first
    while transit != NULL and transit.name != name:
        transit = transit.next
    if transit != NULL:
        transit.left_count += 1     # kept from ending, and from being freed, until below
    pthread_mutex_unlock(&engine.mutex)
    if transit == NULL:
        return False
    for index in range(transit.operation_count):
        # What has ended is not known any more; its callback has returned.
        if ucx.cancel(transit.operations[index], PATIENCE_NS) == ucx.UNENDED:
            is_unended = True
    pthread_mutex_lock(&engine.mutex)
    _remove(transit)
    pthread_mutex_unlock(&engine.mutex)
    _free(transit)
    return is_unended


def _is_dead(pid):
    """Whether a process of this pid namespace has ended, reaped or not; 0 is nobody known."""
    if pid == 0:
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
        # Without its first thread, but with others, a process is a zombie that lives.
        return state in (b"Z", b"X") and len(os.listdir(f"/proc/{pid}/task")) == 1
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False


cdef void _on_end(
    void *context, uint64_t operation, int progress, int error, size_t moved_bytes
) noexcept nogil:
    _count_down(<Transit *> context, error, moved_bytes)


cdef void _count_down(Transit *transit, int error, size_t moved_bytes) noexcept nogil:
    cdef Ended *ended = NULL
    cdef Mailbox *mailbox = transit.mailbox
    pthread_mutex_lock(&engine.mutex)
    transit.moved_bytes += moved_bytes
    if error:
        transit.error = error
    transit.left_count -= 1
    if transit.left_count == 0:
        _remove(transit)
        ended, transit.ended = transit.ended, NULL
        ended.completion = Completion(
            transit.tag, FAILED if transit.error else COMPLETE, transit.error,
            transit.moved_bytes, 0, 0,
        )
        # Under the mutex: whoever cancels finds it there still, or posted.
        post(mailbox, ended)
        _free(transit)
    pthread_mutex_unlock(&engine.mutex)


cdef Transit *_new_transit(
    Mailbox *mailbox, uint64_t tag, size_t operation_count
) noexcept nogil:
    cdef Transit *transit = <Transit *> calloc(1, sizeof(Transit))
    if transit == NULL:
        return NULL
    transit.operations = <uint64_t *> calloc(operation_count, sizeof(uint64_t))
    transit.ended = <Ended *> malloc(sizeof(Ended))
    if transit.operations == NULL or transit.ended == NULL:
        _free(transit)
        return NULL
    transit.operation_count = operation_count
    transit.left_count = operation_count + 1
    transit.mailbox = mailbox
    transit.tag = tag
    pthread_mutex_lock(&engine.mutex)
    engine.transit_count += 1
    transit.name = engine.transit_count
    transit.next = engine.first
    engine.first = transit
    pthread_mutex_unlock(&engine.mutex)
    return transit


cdef void _remove(Transit *transit) noexcept nogil:
    cdef Transit **place = &engine.first
    while place[0] != transit:
        place = &place[0].next
    place[0] = transit.next


cdef void _free(Transit *transit) noexcept nogil:
    free(transit.operations)
    free(transit.ended)
    free(transit)
