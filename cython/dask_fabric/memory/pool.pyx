"""The one pool of receive buffers of this process.

Up to ``SMALL_BYTES`` a buffer is plain malloc. From there up it is a slab of a size class (four per
doubling), which comes back to an idle list when its buffer dies and is handed out again, the most
recently used first. From 2 MiB up a slab is mapped on its own, of huge pages.

What a lock guards: the idle lists, because native threads trim them without the GIL. The figures
of buffers in use change under the GIL only. No memory is mapped or unmapped under the lock.
"""

import math
import operator

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport int64_t, uintptr_t
from libc.stdio cimport sscanf
from libc.stdlib cimport free, malloc
from posix.fcntl cimport O_RDONLY, open as open_file
from posix.unistd cimport close, read

from dask_fabric.errors import ConfigError

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, const void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_atfork(void (*)() noexcept nogil, void (*)() noexcept nogil,
                       void (*)() noexcept nogil)

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **, size_t, size_t)

cdef extern from "<sys/mman.h>" nogil:
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MADV_HUGEPAGE, MADV_DONTNEED
    void *MAP_FAILED
    void *mmap(void *, size_t, int, int, int, Py_ssize_t)
    int munmap(void *, size_t)
    int madvise(void *, size_t, int)

cdef extern from "<time.h>" nogil:
    struct timespec:
        int64_t tv_sec
        int64_t tv_nsec
    int CLOCK_MONOTONIC_COARSE
    int clock_gettime(int, timespec *)

cdef extern from "<unistd.h>" nogil:
    int _SC_PAGESIZE
    long sysconf(int)

cdef extern from "<fcntl.h>" nogil:
    int O_CLOEXEC

cdef extern from *:
    int __builtin_clzll(unsigned long long) nogil

cdef enum:
    SMALL_BYTES = 64 << 10
    HUGE_BYTES = 2 << 20
    CACHE_LINE_BYTES = 64
    CLASS_COUNT = 125       # 64 KiB to LARGEST_BYTES, four per doubling
    NOT_POOLED = -1
    NOT_CACHED = -2
    BATCH_COUNT = 64        # slabs given up in one go, so that no thread waits long
    EXPIRED_COUNT = 2       # the same in passing, on allocation and release

cdef Py_ssize_t LARGEST_BYTES = <Py_ssize_t>1 << 47     # the address space of a process
cdef Py_ssize_t ANY_BYTES = <Py_ssize_t>((<size_t>-1) >> 1)
cdef int64_t NEVER_NS = -1
cdef int64_t RSS_INTERVAL_NS = 100_000_000

cdef struct Slab:
    # Idle memory. The node lies apart from it: a late write into freed memory harms no list.
    char *data
    Py_ssize_t capacity_bytes
    int size_class
    int64_t released_ns
    Slab *newer             # among all idle slabs
    Slab *older
    Slab *above             # in the stack of its class
    Slab *below

cdef struct Pool:
    Slab *top[CLASS_COUNT]
    Slab *newest
    Slab *oldest
    Py_ssize_t max_idle_bytes
    int64_t idle_ns
    Py_ssize_t pressure_limit_bytes
    int64_t next_rss_ns
    bint under_pressure
    Py_ssize_t idle_bytes
    Py_ssize_t idle_count
    Py_ssize_t peak_idle_bytes
    Py_ssize_t evicted_bytes
    Py_ssize_t trimmed_bytes
    Py_ssize_t in_use_bytes
    Py_ssize_t in_use_count
    Py_ssize_t hits_count
    Py_ssize_t misses_count

cdef Pool pool              # static, so all zero
cdef pthread_mutex_t mutex
pool.max_idle_bytes = 1 << 30
pool.idle_ns = 10_000_000_000


cdef void lock() noexcept nogil:
    pthread_mutex_lock(&mutex)


cdef void unlock() noexcept nogil:
    pthread_mutex_unlock(&mutex)


cdef void renew_lock() noexcept nogil:
    pthread_mutex_init(&mutex, NULL)


renew_lock()
# The lock is held across a fork: the child must not inherit lists that a native thread is changing.
if pthread_atfork(lock, unlock, renew_lock):
    raise MemoryError("cannot register the handlers that keep the buffer pool usable after a fork")


# ---------------------------------------------------------------- sizes

cdef inline Py_ssize_t class_bytes(int size_class) noexcept nogil:
    return <Py_ssize_t>(4 + size_class % 4) << (14 + size_class // 4)


cdef inline int smallest_class(Py_ssize_t nbytes) noexcept nogil:
    """The smallest class that holds nbytes, which lie between SMALL_BYTES and LARGEST_BYTES."""
    cdef unsigned long long last = nbytes - 1
    cdef int exponent = 63 - __builtin_clzll(last)
    return (exponent - 16) * 4 + <int>(last >> (exponent - 2)) - 3


cdef inline Py_ssize_t whole_huge_pages(Py_ssize_t nbytes) noexcept nogil:
    return (nbytes + HUGE_BYTES - 1) & ~<Py_ssize_t>(HUGE_BYTES - 1)


cdef inline int class_of(Py_ssize_t nbytes) noexcept nogil:
    cdef int size_class = smallest_class(nbytes)
    if class_bytes(size_class) > HUGE_BYTES:
        return smallest_class(whole_huge_pages(class_bytes(size_class)))
    return size_class


# ---------------------------------------------------------------- the system's memory

cdef char *map_huge(Py_ssize_t nbytes) noexcept nogil:
    """Map whole huge pages, aligned to them: an unaligned mapping loses up to two of them."""
    cdef int protection = PROT_READ | PROT_WRITE
    cdef int flags = MAP_PRIVATE | MAP_ANONYMOUS
    cdef Py_ssize_t lead_bytes
    cdef char *data = <char *>mmap(NULL, nbytes, protection, flags, -1, 0)
    if data == <char *>MAP_FAILED:
        return NULL
    if <uintptr_t>data % HUGE_BYTES:    # kernels before 6.7 do not align by themselves
        munmap(data, nbytes)
        data = <char *>mmap(NULL, nbytes + HUGE_BYTES, protection, flags, -1, 0)
        if data == <char *>MAP_FAILED:
            return NULL
        lead_bytes = HUGE_BYTES - <uintptr_t>data % HUGE_BYTES
        munmap(data, lead_bytes)
        data += lead_bytes
        if lead_bytes < HUGE_BYTES:
            munmap(data + nbytes, HUGE_BYTES - lead_bytes)
    madvise(data, nbytes, MADV_HUGEPAGE)    # a kernel without huge pages is slower, not wrong
    return data


cdef char *obtain(Py_ssize_t capacity_bytes) noexcept nogil:
    cdef void *data = NULL
    if capacity_bytes >= HUGE_BYTES:
        return map_huge(capacity_bytes)
    if posix_memalign(&data, CACHE_LINE_BYTES, capacity_bytes):
        return NULL
    return <char *>data


cdef void give_back(char *data, Py_ssize_t capacity_bytes) noexcept nogil:
    cdef uintptr_t page, first, end
    if capacity_bytes >= HUGE_BYTES:
        munmap(data, capacity_bytes)
        return
    # free() keeps what lies in the middle of its heap; the pages are to go to the system now.
    page = sysconf(_SC_PAGESIZE)
    first = (<uintptr_t>data + page - 1) // page * page
    end = (<uintptr_t>data + capacity_bytes) // page * page
    if end > first:
        madvise(<void *>first, end - first, MADV_DONTNEED)
    free(data)


cdef int64_t coarse_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now)
    return now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef Py_ssize_t resident_bytes() noexcept nogil:
    """RSS of this process; 0 where /proc cannot be read. Opened anew, since a fork changes it."""
    cdef char text[128]
    cdef long page_count = 0
    cdef Py_ssize_t length
    cdef int fd = open_file("/proc/self/statm", O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return 0
    length = read(fd, text, sizeof(text) - 1)
    close(fd)
    text[length if length > 0 else 0] = 0
    if sscanf(text, "%*d %ld", &page_count) != 1:
        return 0
    return page_count * sysconf(_SC_PAGESIZE)


# ---------------------------------------------------------------- idle slabs; call with the lock

cdef void push(Slab *slab, int64_t now_ns) noexcept nogil:
    slab.released_ns = now_ns
    slab.newer = NULL
    slab.older = pool.newest
    slab.above = NULL
    slab.below = pool.top[slab.size_class]
    if slab.older != NULL:
        slab.older.newer = slab
    else:
        pool.oldest = slab
    if slab.below != NULL:
        slab.below.above = slab
    pool.newest = slab
    pool.top[slab.size_class] = slab
    pool.idle_bytes += slab.capacity_bytes
    pool.idle_count += 1
    pool.peak_idle_bytes = max(pool.peak_idle_bytes, pool.idle_bytes)


cdef void unlink(Slab *slab) noexcept nogil:
    if slab.newer != NULL:
        slab.newer.older = slab.older
    else:
        pool.newest = slab.older
    if slab.older != NULL:
        slab.older.newer = slab.newer
    else:
        pool.oldest = slab.newer
    if slab.above != NULL:
        slab.above.below = slab.below
    else:
        pool.top[slab.size_class] = slab.below
    if slab.below != NULL:
        slab.below.above = slab.above
    pool.idle_bytes -= slab.capacity_bytes
    pool.idle_count -= 1


cdef Py_ssize_t detach(Slab **doomed, Py_ssize_t target_bytes, int64_t expiry_ns,
                       int limit_count) noexcept nogil:
    """Move the oldest slabs to the chain `doomed` while more than target_bytes are idle, or while
    they were released at expiry_ns or before, but no more than limit_count. Returns their bytes."""
    cdef Py_ssize_t before_bytes = pool.idle_bytes
    cdef Slab *slab = pool.oldest
    while slab != NULL and limit_count > 0 and (
            pool.idle_bytes > target_bytes or slab.released_ns <= expiry_ns):
        unlink(slab)
        slab.below = doomed[0]
        doomed[0] = slab
        slab = pool.oldest
        limit_count -= 1
    return before_bytes - pool.idle_bytes


cdef bint under_pressure(int64_t now_ns) noexcept nogil:
    if not pool.pressure_limit_bytes:
        return False
    if now_ns >= pool.next_rss_ns:
        pool.under_pressure = resident_bytes() > pool.pressure_limit_bytes
        pool.next_rss_ns = now_ns + RSS_INTERVAL_NS
    return pool.under_pressure


cdef Slab *best_idle(Py_ssize_t nbytes, int size_class) noexcept nogil:
    """The warmest slab of the smallest class that has one and wastes a quarter at most."""
    while pool.top[size_class] == NULL:
        size_class += 1
        if size_class == CLASS_COUNT or class_bytes(size_class) - nbytes > nbytes // 4:
            return NULL
    return pool.top[size_class]


# ---------------------------------------------------------------- without the lock

cdef void destroy(Slab *slab) noexcept nogil:
    """Give the memory of a whole chain back to the system."""
    cdef Slab *following
    while slab != NULL:
        following = slab.below
        give_back(slab.data, slab.capacity_bytes)
        free(slab)
        slab = following


cdef Py_ssize_t trim_to(Py_ssize_t target_bytes) noexcept nogil:
    cdef Py_ssize_t freed_bytes = 0, step_bytes
    cdef Slab *doomed
    while True:
        doomed = NULL
        lock()
        step_bytes = detach(&doomed, target_bytes, NEVER_NS, BATCH_COUNT)
        pool.trimmed_bytes += step_bytes
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
    pool.trimmed_bytes += detach(&doomed, ANY_BYTES, coarse_ns() - pool.idle_ns, EXPIRED_COUNT)
    unlock()
    destroy(doomed)
    return slab


cdef void keep_idle(Slab *slab) noexcept nogil:
    """Make the slab idle, or give it back where the bound or the pressure forbid that."""
    cdef Slab *doomed = NULL
    cdef Py_ssize_t room_bytes
    cdef int64_t now_ns
    lock()
    now_ns = coarse_ns()
    room_bytes = pool.max_idle_bytes - slab.capacity_bytes
    if room_bytes >= 0 and not under_pressure(now_ns):
        pool.evicted_bytes += detach(&doomed, room_bytes, NEVER_NS, BATCH_COUNT)
    # Many small slabs may leave too little room after one batch: then both sides give way.
    if pool.idle_bytes <= room_bytes and not under_pressure(now_ns):
        push(slab, now_ns)
    else:
        pool.evicted_bytes += slab.capacity_bytes
        slab.below = doomed
        doomed = slab
    pool.trimmed_bytes += detach(&doomed, ANY_BYTES, now_ns - pool.idle_ns, EXPIRED_COUNT)
    unlock()
    destroy(doomed)


cdef void release(char *data, Py_ssize_t capacity_bytes, int size_class) noexcept nogil:
    cdef Slab *slab
    if size_class == NOT_POOLED:
        free(data)
        return
    slab = <Slab *>malloc(sizeof(Slab)) if size_class >= 0 else NULL
    if slab == NULL:
        give_back(data, capacity_bytes)
        return
    slab.data = data
    slab.capacity_bytes = capacity_bytes
    slab.size_class = size_class
    keep_idle(slab)


# ---------------------------------------------------------------- buffers

@cython.final
@cython.freelist(64)
cdef class Buffer:
    """Contiguous writeable host memory, handed back to the pool when its last view dies.

    Made by `allocate` only. Its content is undefined until it is written. It exports a
    one-dimensional buffer of format ``B``.

    Attributes
    ----------
    nbytes : int
        Length in bytes, as asked for.
    """

    def __init__(self):
        raise TypeError("a Buffer cannot be made directly: call dask_fabric.memory.pool.allocate")

    def __len__(self):
        return self.nbytes

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.nbytes, 0, flags)

    def __dealloc__(self):
        if self.data != NULL:
            pool.in_use_bytes -= self.nbytes
            pool.in_use_count -= 1
            release(self.data, self.capacity_bytes, self.size_class)


cdef void fill(Buffer buffer, Py_ssize_t nbytes) noexcept:
    """Give the buffer a slab, of the idle ones if one fits; its data stay NULL without memory."""
    cdef Slab *slab
    cdef int size_class = class_of(nbytes)
    cdef Py_ssize_t capacity_bytes = class_bytes(size_class)
    if capacity_bytes <= pool.max_idle_bytes:
        slab = take_idle(nbytes, size_class)
        if slab != NULL:
            pool.hits_count += 1
            buffer.data = slab.data
            buffer.capacity_bytes = slab.capacity_bytes
            buffer.size_class = slab.size_class
            free(slab)
            return
    else:
        size_class = NOT_CACHED
        capacity_bytes = nbytes if nbytes < HUGE_BYTES else whole_huge_pages(nbytes)
    pool.misses_count += 1
    buffer.capacity_bytes = capacity_bytes
    buffer.size_class = size_class
    buffer.data = obtain(capacity_bytes)
    if buffer.data == NULL and trim_to(0):
        buffer.data = obtain(capacity_bytes)


cpdef Buffer allocate(Py_ssize_t nbytes):
    """Hand out memory for one frame.

    Parameters
    ----------
    nbytes : int
        Length in bytes; 0 is allowed.

    Returns
    -------
    Buffer
        Of exactly this length, its content undefined.

    Raises
    ------
    ValueError
        The length is negative.
    MemoryError
        The system does not give that much; the message names the size.
    """
    cdef Buffer buffer
    if nbytes < 0:
        raise ValueError(f"a buffer cannot have a negative length, got {nbytes} bytes")
    buffer = Buffer.__new__(Buffer)
    if nbytes < SMALL_BYTES:
        buffer.size_class = NOT_POOLED
        buffer.capacity_bytes = nbytes
        buffer.data = <char *>malloc(nbytes if nbytes else 1)
    elif nbytes <= LARGEST_BYTES:
        fill(buffer, nbytes)
    if buffer.data == NULL:
        raise MemoryError(f"the system has no memory for a receive buffer of {nbytes} bytes")
    buffer.nbytes = nbytes
    pool.in_use_bytes += nbytes
    pool.in_use_count += 1
    return buffer


# ---------------------------------------------------------------- trimming and settings

cpdef bint has_idle_memory() noexcept nogil:
    """Whether `trim_idle` may have something to do, now or later."""
    cdef bint found
    lock()
    found = pool.oldest != NULL
    unlock()
    return found


cdef bint has_slabs() noexcept nogil:
    """Whether the pool holds slabs, idle or in use (and so, sooner or later, idle)."""
    return pool.in_use_count > 0 or pool.oldest != NULL


cpdef void trim_idle() noexcept nogil:
    """Give back what was idle for too long; under memory pressure, all that is idle."""
    cdef Py_ssize_t target_bytes
    cdef int64_t now_ns
    cdef Slab *doomed
    while True:
        doomed = NULL
        lock()
        now_ns = coarse_ns()
        target_bytes = 0 if under_pressure(now_ns) else ANY_BYTES
        pool.trimmed_bytes += detach(&doomed, target_bytes, now_ns - pool.idle_ns, BATCH_COUNT)
        unlock()
        if doomed == NULL:
            return
        destroy(doomed)


def trim(target_bytes=0):
    """Give the longest idle memory back until no more than target_bytes are idle.

    Parameters
    ----------
    target_bytes : int, optional
        What may stay idle; 0 (the default) gives back everything that is not in use.

    Returns
    -------
    int
        Bytes given back.
    """
    cdef Py_ssize_t target = operator.index(target_bytes)
    cdef Py_ssize_t freed_bytes
    if target < 0:
        raise ValueError(f"target_bytes cannot be negative, got {target}")
    with nogil:
        freed_bytes = trim_to(target)
    return freed_bytes


def checked_bytes(name, value):
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number <= LARGEST_BYTES:
        raise ConfigError(
            f"{name} must be a whole number of bytes from 0 to {LARGEST_BYTES}, got {value!r}")
    return number


def checked_ns(name, value):
    try:
        seconds = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds <= 1e9:
        raise ConfigError(f"{name} must be a number of seconds from 0 to 1e9, got {value!r}")
    return int(seconds * 1e9)


def configure(*, max_idle_bytes=None, idle_seconds=None, pressure_limit_bytes=None):
    """Change settings of the pool; what is None stays as it is. All or nothing is changed.

    Parameters
    ----------
    max_idle_bytes : int, optional
        Bound of the memory kept for later; 1 GiB at first. Larger frames are not cached.
    idle_seconds : float, optional
        How long memory is kept unused; 10 at first.
    pressure_limit_bytes : int, optional
        RSS of this process above which nothing is kept; 0, as at first, means no limit.

    Raises
    ------
    ConfigError
        A value is not usable; the message names it.
    """
    cdef Py_ssize_t bound = pool.max_idle_bytes, pressure_limit = pool.pressure_limit_bytes
    cdef int64_t idle_ns = pool.idle_ns
    if max_idle_bytes is not None:
        bound = checked_bytes("max_idle_bytes", max_idle_bytes)
    if idle_seconds is not None:
        idle_ns = checked_ns("idle_seconds", idle_seconds)
    if pressure_limit_bytes is not None:
        pressure_limit = checked_bytes("pressure_limit_bytes", pressure_limit_bytes)
    with nogil:
        lock()
        pool.max_idle_bytes = bound
        pool.idle_ns = idle_ns
        pool.pressure_limit_bytes = pressure_limit
        pool.next_rss_ns = 0
        unlock()
        trim_to(bound)


def set_pressure_limit(rss_bytes):
    """Keep nothing while the RSS of this process is above rss_bytes; 0 means no limit."""
    configure(pressure_limit_bytes=rss_bytes)


def statistics():
    """Figures of the pool, as a dict.

    ``in_use_*`` is what live buffers were asked for; ``idle_*``, ``evicted_bytes`` (no room
    within the bound or under pressure) and ``trimmed_bytes`` (idle too long, or trimmed on
    request) are whole slabs. ``hits_count`` and ``misses_count`` leave out small buffers.
    """
    cdef Pool seen
    lock()
    seen = pool
    unlock()
    return {
        "in_use_bytes": seen.in_use_bytes,
        "in_use_count": seen.in_use_count,
        "idle_bytes": seen.idle_bytes,
        "idle_count": seen.idle_count,
        "peak_idle_bytes": seen.peak_idle_bytes,
        "hits_count": seen.hits_count,
        "misses_count": seen.misses_count,
        "evicted_bytes": seen.evicted_bytes,
        "trimmed_bytes": seen.trimmed_bytes,
        "max_idle_bytes": seen.max_idle_bytes,
        "idle_seconds": seen.idle_ns / 1e9,
        "pressure_limit_bytes": seen.pressure_limit_bytes,
    }
