"""Idle slabs: a free list per size class, most recently used on top, and a list of all by age.

A lock guards them, because native threads trim them without the GIL. No memory is mapped or
unmapped under the lock, and no file is read.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free

from dask_fabric.atomics cimport relaxed
from dask_fabric.linux cimport (
    pthread_atfork, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from dask_fabric.memory.files cimport free_slab
from dask_fabric.memory.system cimport coarse_ns, give_back, resident_bytes

cdef enum:
    CLASS_COUNT = 31 * STEP_COUNT + 1       # 64 KiB to LARGEST_BYTES
    BATCH_COUNT = 64        # slabs detached under the lock at once, so that no thread waits long
    EXPIRED_COUNT = 2       # slabs trimmed in passing, by an allocation or release

LARGEST_BYTES = <Py_ssize_t>1 << 47
NEVER_NS = -1
cdef Py_ssize_t ANY_BYTES = <Py_ssize_t>((<size_t>-1) >> 1)
cdef int64_t RSS_INTERVAL_NS = 100_000_000

cdef pthread_mutex_t mutex
cdef Slab *top[CLASS_COUNT]
cdef Slab *newest = NULL
cdef Slab *oldest = NULL
cdef uint64_t release_count = 0
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
    seen.in_use_bytes = relaxed(&usage.in_use_bytes)
    seen.in_use_count = relaxed(&usage.in_use_count)
    seen.hits_count = relaxed(&usage.hits_count)
    seen.misses_count = relaxed(&usage.misses_count)
    seen.pinned_bytes = relaxed(&usage.pinned_bytes)
    return seen


cdef bint has_idle() noexcept nogil:
    cdef bint has
    lock()
    has = figures.idle_count > 0
    unlock()
    return has


renew_lock()
# The lock is held across a fork: the child must not inherit half-changed lists.
if pthread_atfork(lock, unlock, renew_lock):
    raise MemoryError("cannot register the handlers that keep the buffer pool usable after a fork")


# ---------------------------------------------------------------- with the lock

cdef void push(Slab *slab, int64_t now_ns) noexcept nogil:
    global newest, oldest, release_count
    release_count += 1
    slab.release_number = release_count
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


cdef Py_ssize_t detach(Slab **victims, Py_ssize_t target_bytes, int64_t expiry_ns,
                       int limit_count) noexcept nogil:
    """Move the oldest slabs to the chain `victims`, while more than target_bytes are idle or they
    were released at or before expiry_ns, at most limit_count of them. Returns their bytes."""
    cdef Py_ssize_t before_bytes = figures.idle_bytes
    cdef Slab *slab = oldest
    while slab != NULL and limit_count > 0 and (
            figures.idle_bytes > target_bytes or slab.released_ns <= expiry_ns):
        unlink(slab)
        slab.below = victims[0]
        victims[0] = slab
        slab = oldest
        limit_count -= 1
    return before_bytes - figures.idle_bytes


cdef Slab *warmest(int size_class, Py_ssize_t most_bytes) noexcept nogil:
    """The most recently released slab of this class or a larger one, up to most_bytes: its memory
    is the most likely to be in the caches."""
    cdef Slab *slab = top[size_class]
    cdef Slab *other
    size_class += 1
    while size_class < CLASS_COUNT and class_bytes(size_class) <= most_bytes:
        other = top[size_class]
        if other != NULL and (slab == NULL or other.release_number > slab.release_number):
            slab = other
        size_class += 1
    return slab


# ---------------------------------------------------------------- without the lock

cdef bint is_under_pressure(int64_t now_ns) noexcept nogil:
    """Whether the process's RSS is above the limit; measured once per `RSS_INTERVAL_NS`."""
    global next_rss_ns, is_rss_high
    cdef Py_ssize_t limit_bytes
    cdef bint is_due, is_high
    lock()
    limit_bytes = figures.pressure_limit_bytes
    is_due = limit_bytes > 0 and now_ns >= next_rss_ns
    is_high = limit_bytes > 0 and is_rss_high
    if is_due:              # this thread measures, others use the last result
        next_rss_ns = now_ns + RSS_INTERVAL_NS
    unlock()
    if not is_due:
        return is_high
    is_high = resident_bytes() > limit_bytes
    lock()
    if limit_bytes == figures.pressure_limit_bytes:
        is_rss_high = is_high
    unlock()
    return is_high


cdef void destroy(Slab *slab) noexcept nogil:
    """Return the memory of a whole chain to the system."""
    cdef Slab *following
    while slab != NULL:
        following = slab.below
        if slab.number:
            free_slab(slab.number, slab.epoch, slab.data, file_bytes(slab.capacity_bytes))
        else:
            give_back(slab.data, slab.capacity_bytes)
        free(slab)
        slab = following


cdef Py_ssize_t trim_to(Py_ssize_t target_bytes, int64_t expiry_ns) noexcept nogil:
    """As `detach`, batch by batch without a limit, and free the slabs. Returns the bytes freed."""
    cdef Py_ssize_t freed_bytes = 0, step_bytes
    cdef Slab *victims
    while True:
        victims = NULL
        lock()
        step_bytes = detach(&victims, target_bytes, expiry_ns, BATCH_COUNT)
        figures.trimmed_bytes += step_bytes
        unlock()
        if victims == NULL:
            return freed_bytes
        destroy(victims)
        freed_bytes += step_bytes


cdef Slab *take_idle(int size_class, Py_ssize_t most_bytes) noexcept nogil:
    """Take an idle slab of this class, or of a larger one up to most_bytes; NULL if there is none.
    """
    cdef Slab *victims = NULL
    cdef Slab *slab
    lock()
    slab = warmest(size_class, most_bytes)
    if slab != NULL:
        unlink(slab)
    figures.trimmed_bytes += detach(&victims, ANY_BYTES, expiry(coarse_ns()), EXPIRED_COUNT)
    unlock()
    destroy(victims)
    return slab


cdef void keep_idle(Slab *slab) noexcept nogil:
    """Make the slab idle, or free it if the bound or memory pressure forbids that.

    A pinned slab is always kept: pinning is expensive, and only its owner can undo it.
    """
    cdef Slab *victims = NULL
    cdef Py_ssize_t room_bytes = -1
    cdef int64_t now_ns = coarse_ns()
    cdef bint is_pressed = is_under_pressure(now_ns)
    lock()
    if slab.is_pinned:
        push(slab, now_ns)
        unlock()
        return
    if not is_pressed:
        room_bytes = figures.max_idle_bytes - slab.capacity_bytes
    if room_bytes >= 0:
        figures.evicted_bytes += detach(&victims, room_bytes, NEVER_NS, BATCH_COUNT)
    # One batch of small slabs may not make enough room: then this slab is freed as well.
    if figures.idle_bytes <= room_bytes:
        push(slab, now_ns)
    else:
        figures.evicted_bytes += slab.capacity_bytes
        slab.below = victims
        victims = slab
    figures.trimmed_bytes += detach(&victims, ANY_BYTES, expiry(now_ns), EXPIRED_COUNT)
    unlock()
    destroy(victims)


cdef void trim_expired() noexcept nogil:
    """Free slabs that were idle for too long; under memory pressure, all idle slabs."""
    cdef int64_t expiry_ns, now_ns = coarse_ns()
    cdef Py_ssize_t target_bytes = 0 if is_under_pressure(now_ns) else ANY_BYTES
    lock()
    expiry_ns = expiry(now_ns)
    unlock()
    trim_to(target_bytes, expiry_ns)


cdef void set_limits(Py_ssize_t max_idle_bytes, double idle_seconds,
                     Py_ssize_t pressure_limit_bytes) noexcept nogil:
    """Change the settings of `pool.configure`; the new bound is enforced at once."""
    global next_rss_ns
    lock()
    figures.max_idle_bytes = max_idle_bytes
    figures.idle_seconds = idle_seconds
    figures.pressure_limit_bytes = pressure_limit_bytes
    next_rss_ns = 0
    unlock()
    trim_to(max_idle_bytes, NEVER_NS)
