"""Frames on their way through UCX: one job for all that one message sends or receives so.

UCX ends each frame by itself, in its own thread; the last one ends the job.
"""

import logging
import os

from libc.errno cimport ENOTCONN
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from dask_fabric.clock cimport now_ns
from dask_fabric.engine.mailbox cimport Completion, Ended, Mailbox, post
from dask_fabric.linux cimport (
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from dask_fabric.paths cimport ucx
from dask_fabric.paths.libucp cimport HOST
from dask_fabric.paths.stream cimport COMPLETE, FAILED
from dask_fabric.wire.offers cimport Offer
from dask_fabric.wire.records cimport HOST_MEMORY

logger = logging.getLogger(__name__)

cdef uint64_t TRANSIT_BIT = <uint64_t> 1 << 62

cdef struct Transit:
    uint64_t name
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

_kept = []                      # owners of memory, their peers' pids, and since when
_has_warned = False


def _reset():
    """Also in a forked child, whose parent's transits are none of its own."""
    memset(&engine, 0, sizeof(engine))
    pthread_mutex_init(&engine.mutex, NULL)


_reset()
os.register_at_fork(after_in_child=_reset)


cdef uint64_t submit_transit(
    Mailbox *mailbox, uint64_t token, uint64_t sequence, const Offer *offers, size_t offer_count,
    int device_kind, bint sending
) except 0:
    """Send or receive frames by the endpoint `token`; the end is posted to the mailbox.

    UCX takes memory of devices for `device_kind`, by its own numbers. The memory of the frames must
    live until the end or the cancellation.
    """
    let_go_for_ucx()
    cdef Transit *transit = _new_transit(mailbox, offer_count)
    cdef uint64_t name, operation
    cdef size_t index
    cdef int kind
    if transit == NULL:
        raise MemoryError()
    name = transit.name
    with nogil:
        for index in range(offer_count):
            kind = HOST if offers[index].memory == HOST_MEMORY else device_kind
            if sending:
                operation = ucx.offer(
                    token, sequence, offers[index].index, offers[index].data,
                    offers[index].nbytes, kind, _on_end, transit,
                )
            else:
                operation = ucx.post(
                    token, sequence, offers[index].index, offers[index].data,
                    offers[index].nbytes, kind, _on_end, transit,
                )
            transit.operations[index] = operation
            if operation == 0:
                _count_down(transit, ENOTCONN, 0)
        _count_down(transit, 0, 0)
    return name


cdef bint cancel_transit(uint64_t name) noexcept nogil:
    """End a job now, if it has not ended already.

    Returns
    -------
    bool
        Whether UCX may still use its memory, which then must be given to `keep_for_ucx`.
    """
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


cdef keep_for_ucx(owner, int peer_pid):
    """Keep memory alive that a cancelled job has left in UCX's hands; see `let_go_for_ucx`."""
    _kept.append((owner, peer_pid, now_ns()))


cdef bint let_go_for_ucx() except -1:
    """Free the memory that UCX has let go of, and say whether it has some in its hands yet.

    With a dead peer nothing makes UCX go on: it would go on when the peer had made room.
    """
    global _has_warned
    cdef int64_t stuck_since_ns
    cdef bint nothing_left
    if not _kept:
        return False
    with nogil:
        nothing_left = ucx.abandoned_count() == 0
    stuck_since_ns = now_ns() - ucx.STUCK_NS
    _kept[:] = [
        (owner, pid, since_ns) for owner, pid, since_ns in _kept
        if not nothing_left and (since_ns > stuck_since_ns or not _is_dead(pid))
    ]
    is_stuck = any(since_ns <= stuck_since_ns for _, _, since_ns in _kept)
    if is_stuck and not _has_warned:
        logger.warning("UCX has not let go of frames of a lost peer; they stay in memory")
    _has_warned = is_stuck
    return bool(_kept)


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
            transit.name, FAILED if transit.error else COMPLETE, transit.error,
            transit.moved_bytes, 0, 0,
        )
        # Under the mutex: whoever cancels finds it there still, or posted.
        post(mailbox, ended)
        _free(transit)
    pthread_mutex_unlock(&engine.mutex)


cdef Transit *_new_transit(Mailbox *mailbox, size_t offer_count) noexcept nogil:
    cdef Transit *transit = <Transit *> calloc(1, sizeof(Transit))
    if transit == NULL:
        return NULL
    transit.operations = <uint64_t *> calloc(offer_count, sizeof(uint64_t))
    transit.ended = <Ended *> malloc(sizeof(Ended))
    if transit.operations == NULL or transit.ended == NULL:
        _free(transit)
        return NULL
    transit.operation_count = offer_count
    transit.left_count = offer_count + 1
    transit.mailbox = mailbox
    pthread_mutex_lock(&engine.mutex)
    engine.transit_count += 1
    transit.name = engine.transit_count | TRANSIT_BIT
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
