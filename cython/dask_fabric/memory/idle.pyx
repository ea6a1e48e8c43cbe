"""Idle slabs: kept for a while, the most recently used on top, and given back oldest first.

A lock guards them, because native threads trim them without the GIL. No memory is mapped or
unmapped under the lock.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport free

from dask_fabric.memory.system cimport coarse_ns, give_back, resident_bytes

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, const void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_atfork(void (*)() noexcept nogil, void (*)() noexcept nogil,
                       void (*)() noexcept nogil)

cdef enum:
    CLASS_COUNT = 125       # 64 KiB to LARGEST_BYTES, four per doubling
    BATCH_COUNT = 64        # slabs given up in one go, so that no thread waits long
    EXPIRED_COUNT = 2       # the same in passing, on allocation and release

LARGEST_BYTES = <Py_ssize_t>1 << 47
NEVER_NS = -1
cdef Py_ssize_t ANY_BYTES = <Py_ssize_t>((<size_t>-1) >> 1)
cdef int64_t RSS_INTERVAL_NS = 100_000_000

cdef pthread_mutex_t mutex
cdef Slab *top[CLASS_COUNT]
cdef Slab *newest = NULL
cdef Slab *oldest = NULL
cdef int64_t next_rss_ns = 0
cdef bint is_rss_high = False
figures.max_idle_bytes = 1 << 30
figures.idle_seconds = 10


cdef void lock() noexcept nogil:
    pthread_mutex_lock(&mutex)


cdef void unlock() noexcept nogil:
    pthread_mutex_unlock(&mutex)


cdef void renew_lock() noexcept nogil:
    pthread_mutex_init(&mutex, NULL)


cdef Figures snapshot() noexcept nogil:
    cdef Figures seen
    lock()
    seen = figures
    unlock()
    return seen


renew_lock()
# The lock is held across a fork: the child must not inherit lists that a native thread is changing.
if pthread_atfork(lock, unlock, renew_lock):
    raise MemoryError("cannot register the handlers that keep the buffer pool usable after a fork")


# ---------------------------------------------------------------- with the lock

cdef void push(Slab *slab, int64_t now_ns) noexcept nogil:
    global newest, oldest
    slab.above = NULL
    slab.below = top[slab.size_class]
    if slab.below != NULL:
        slab.below.above = slab
    top[slab.size_class] = slab
    if slab.is_pinned:
        return
    slab.released_ns = now_ns
    slab.newer = NULL
    slab.older = newest
    if slab.older != NULL:
        slab.older.newer = slab
    else:
        oldest = slab
    newest = slab
    figures.idle_bytes += slab.capacity_bytes
    figures.idle_count += 1
    figures.peak_idle_bytes = max(figures.peak_idle_bytes, figures.idle_bytes)


cdef void unlink(Slab *slab) noexcept nogil:
    global newest, oldest
    if slab.above != NULL:
        slab.above.below = slab.below
    else:
        top[slab.size_class] = slab.below
    if slab.below != NULL:
        slab.below.above = slab.above
    if slab.is_pinned:
        return
    if slab.newer != NULL:
        slab.newer.older = slab.older
    else:
        newest = slab.older
    if slab.older != NULL:
        slab.older.newer = slab.newer
    else:
        oldest = slab.newer
    figures.idle_bytes -= slab.capacity_bytes
    figures.idle_count -= 1


cdef inline int64_t expiry(int64_t now_ns) noexcept nogil:
    return now_ns - <int64_t>(figures.idle_seconds * 1e9)


cdef Py_ssize_t detach(Slab **doomed, Py_ssize_t target_bytes, int64_t expiry_ns,
                       int limit_count) noexcept nogil:
    """Move the oldest slabs to the chain `doomed` while more than target_bytes are idle, or while
    they were released at expiry_ns or before, but no more than limit_count. Returns their bytes."""
    cdef Py_ssize_t before_bytes = figures.idle_bytes
    cdef Slab *slab = oldest
    while slab != NULL and limit_count > 0 and (
            figures.idle_bytes > target_bytes or slab.released_ns <= expiry_ns):
        unlink(slab)
        slab.below = doomed[0]
        doomed[0] = slab
        slab = oldest
        limit_count -= 1
    return before_bytes - figures.idle_bytes


cdef bint is_under_pressure(int64_t now_ns) noexcept nogil:
    global next_rss_ns, is_rss_high
    if not figures.pressure_limit_bytes:
        return False
    if now_ns >= next_rss_ns:
        is_rss_high = resident_bytes() > figures.pressure_limit_bytes
        next_rss_ns = now_ns + RSS_INTERVAL_NS
    return is_rss_high


cdef Slab *best_idle(Py_ssize_t nbytes, int size_class) noexcept nogil:
    """The warmest slab of the smallest class that has one and wastes a quarter at most."""
    while top[size_class] == NULL:
        size_class += 1
        if size_class == CLASS_COUNT or class_bytes(size_class) - nbytes > nbytes // 4:
            return NULL
    return top[size_class]


# ---------------------------------------------------------------- without the lock

cdef void destroy(Slab *slab) noexcept nogil:
    """Give the memory of a whole chain back to the system."""
    cdef Slab *following
    while slab != NULL:
        following = slab.below
        give_back(slab.data, slab.capacity_bytes)
        free(slab)
        slab = following


cdef Py_ssize_t trim_to(Py_ssize_t target_bytes, int64_t expiry_ns) noexcept nogil:
    """As `detach`, but without a limit: batch by batch. Returns the bytes given back."""
    cdef Py_ssize_t freed_bytes = 0, step_bytes
    cdef Slab *doomed
    while True:
        doomed = NULL
        lock()
        step_bytes = detach(&doomed, target_bytes, expiry_ns, BATCH_COUNT)
        figures.trimmed_bytes += step_bytes
        unlock()
        if doomed == NULL:
            return freed_bytes
        destroy(doomed)
        freed_bytes += step_bytes


cdef Slab *take_idle(Py_ssize_t nbytes, int size_class) noexcept nogil:
    cdef Slab *doomed = NULL
    cdef Slab *slab
    lock()
    slab = best_idle(nbytes, size_class)
    if slab != NULL:
        unlink(slab)
    figures.trimmed_bytes += detach(&doomed, ANY_BYTES, expiry(coarse_ns()), EXPIRED_COUNT)
    unlock()
    destroy(doomed)
    return slab


cdef void keep_idle(Slab *slab) noexcept nogil:
    """Make the slab idle, or give it back where the bound or the pressure forbid that.

    Pinned memory is kept: pinning costs more than all else, and only its owner can undo it.
    """
    cdef Slab *doomed = NULL
    cdef Py_ssize_t room_bytes = -1
    cdef int64_t now_ns = coarse_ns()
    lock()
    if slab.is_pinned:
        push(slab, now_ns)
        unlock()
        return
    if not is_under_pressure(now_ns):
        room_bytes = figures.max_idle_bytes - slab.capacity_bytes
    if room_bytes >= 0:
        figures.evicted_bytes += detach(&doomed, room_bytes, NEVER_NS, BATCH_COUNT)
    # Many small slabs may leave too little room after one batch: then both sides give way.
    if figures.idle_bytes <= room_bytes:
        push(slab, now_ns)
    else:
        figures.evicted_bytes += slab.capacity_bytes
        slab.below = doomed
        doomed = slab
    figures.trimmed_bytes += detach(&doomed, ANY_BYTES, expiry(now_ns), EXPIRED_COUNT)
    unlock()
    destroy(doomed)


cdef void trim_expired() noexcept nogil:
    """Give back what was idle for too long; under memory pressure, all that is idle."""
    cdef Py_ssize_t target_bytes
    cdef int64_t expiry_ns, now_ns = coarse_ns()
    lock()
    target_bytes = 0 if is_under_pressure(now_ns) else ANY_BYTES
    expiry_ns = expiry(now_ns)
    unlock()
    trim_to(target_bytes, expiry_ns)


cdef void set_limits(Py_ssize_t max_idle_bytes, double idle_seconds,
                     Py_ssize_t pressure_limit_bytes) noexcept nogil:
    """Change what `pool.configure` changes; the new bound holds at once."""
    global next_rss_ns
    lock()
    figures.max_idle_bytes = max_idle_bytes
    figures.idle_seconds = idle_seconds
    figures.pressure_limit_bytes = pressure_limit_bytes
    next_rss_ns = 0
    unlock()
    trim_to(max_idle_bytes, NEVER_NS)
