"""The one pool of receive buffers of this process.

Below ``SMALL_BYTES`` a buffer is plain malloc. From there up it is a slab of a size class (four per
doubling), which comes back to an idle list when its buffer dies and is handed out again, the most
recently used first. From 2 MiB up a slab is mapped on its own, of huge pages.

What a lock guards: the idle lists, because native threads trim them without the GIL. The figures
of buffers in use change under the GIL only. No memory is mapped or unmapped under the lock.
"""

import operator

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport int64_t, uintptr_t
from libc.stdio cimport sscanf
from libc.stdlib cimport free, malloc
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open as open_file
from posix.mman cimport (
    MADV_DONTNEED, MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE,
    madvise, mmap, munmap,
)
from posix.stdlib cimport posix_memalign
from posix.time cimport CLOCK_MONOTONIC_COARSE, clock_gettime, timespec
from posix.unistd cimport _SC_PAGESIZE, close, read, sysconf

from dask_fabric.errors import ConfigError

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, const void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_atfork(void (*)() noexcept nogil, void (*)() noexcept nogil,
                       void (*)() noexcept nogil)

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
    MOST_SECONDS = 1000000000   # in ns they still fit 64 bits
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
    Py_ssize_t max_idle_bytes
    Py_ssize_t pressure_limit_bytes
    double idle_seconds

cdef pthread_mutex_t mutex
cdef Figures pool
cdef Slab *top[CLASS_COUNT]
cdef Slab *newest = NULL
cdef Slab *oldest = NULL
cdef int64_t next_rss_ns = 0
cdef bint is_rss_high = False
pool.max_idle_bytes = 1 << 30
pool.idle_seconds = 10


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
    # Kernels differ in what they align by themselves; one page more and none does.
    cdef Py_ssize_t lead_bytes, spare_bytes = HUGE_BYTES + sysconf(_SC_PAGESIZE)
    cdef char *data = <char *>mmap(NULL, nbytes + spare_bytes, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if data == <char *>MAP_FAILED:
        return NULL
    lead_bytes = -<uintptr_t>data % HUGE_BYTES
    if lead_bytes:
        munmap(data, lead_bytes)
    data += lead_bytes
    munmap(data + nbytes, spare_bytes - lead_bytes)
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
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef inline int64_t expiry(int64_t now_ns) noexcept nogil:
    return now_ns - <int64_t>(pool.idle_seconds * 1e9)


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
    global newest, oldest
    slab.released_ns = now_ns
    slab.newer = NULL
    slab.older = newest
    slab.above = NULL
    slab.below = top[slab.size_class]
    if slab.older != NULL:
        slab.older.newer = slab
    else:
        oldest = slab
    if slab.below != NULL:
        slab.below.above = slab
    newest = slab
    top[slab.size_class] = slab
    pool.idle_bytes += slab.capacity_bytes
    pool.idle_count += 1
    pool.peak_idle_bytes = max(pool.peak_idle_bytes, pool.idle_bytes)


cdef void unlink(Slab *slab) noexcept nogil:
    global newest, oldest
    if slab.newer != NULL:
        slab.newer.older = slab.older
    else:
        newest = slab.older
    if slab.older != NULL:
        slab.older.newer = slab.newer
    else:
        oldest = slab.newer
    if slab.above != NULL:
        slab.above.below = slab.below
    else:
        top[slab.size_class] = slab.below
    if slab.below != NULL:
        slab.below.above = slab.above
    pool.idle_bytes -= slab.capacity_bytes
    pool.idle_count -= 1


cdef Py_ssize_t detach(Slab **doomed, Py_ssize_t target_bytes, int64_t expiry_ns,
                       int limit_count) noexcept nogil:
    """Move the oldest slabs to the chain `doomed` while more than target_bytes are idle, or while
    they were released at expiry_ns or before, but no more than limit_count. Returns their bytes."""
    cdef Py_ssize_t before_bytes = pool.idle_bytes
    cdef Slab *slab = oldest
    while slab != NULL and limit_count > 0 and (
            pool.idle_bytes > target_bytes or slab.released_ns <= expiry_ns):
        unlink(slab)
        slab.below = doomed[0]
        doomed[0] = slab
        slab = oldest
        limit_count -= 1
    return before_bytes - pool.idle_bytes


cdef bint is_under_pressure(int64_t now_ns) noexcept nogil:
    global next_rss_ns, is_rss_high
    if not pool.pressure_limit_bytes:
        return False
    if now_ns >= next_rss_ns:
        is_rss_high = resident_bytes() > pool.pressure_limit_bytes
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
    pool.trimmed_bytes += detach(&doomed, ANY_BYTES, expiry(coarse_ns()), EXPIRED_COUNT)
    unlock()
    destroy(doomed)
    return slab


cdef void keep_idle(Slab *slab) noexcept nogil:
    """Make the slab idle, or give it back where the bound or the pressure forbid that."""
    cdef Slab *doomed = NULL
    cdef Py_ssize_t room_bytes = -1
    cdef int64_t now_ns = coarse_ns()
    lock()
    if not is_under_pressure(now_ns):
        room_bytes = pool.max_idle_bytes - slab.capacity_bytes
    if room_bytes >= 0:
        pool.evicted_bytes += detach(&doomed, room_bytes, NEVER_NS, BATCH_COUNT)
    # Many small slabs may leave too little room after one batch: then both sides give way.
    if pool.idle_bytes <= room_bytes:
        push(slab, now_ns)
    else:
        pool.evicted_bytes += slab.capacity_bytes
        slab.below = doomed
        doomed = slab
    pool.trimmed_bytes += detach(&doomed, ANY_BYTES, expiry(now_ns), EXPIRED_COUNT)
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
@cython.auto_pickle(False)      # a copy would free the same memory once more
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
    if buffer.data == NULL and trim_to(0, NEVER_NS):
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
    found = oldest != NULL
    unlock()
    return found


cdef bint has_slabs() noexcept nogil:
    """Whether the pool holds slabs, idle or in use (and so, sooner or later, idle)."""
    return pool.in_use_count > 0 or oldest != NULL


cpdef void trim_idle() noexcept nogil:
    """Give back what was idle for too long; under memory pressure, all that is idle."""
    cdef Py_ssize_t target_bytes
    cdef int64_t expiry_ns, now_ns = coarse_ns()
    lock()
    target_bytes = 0 if is_under_pressure(now_ns) else ANY_BYTES
    expiry_ns = expiry(now_ns)
    unlock()
    trim_to(target_bytes, expiry_ns)


def trim(target_bytes=0):
    """Give the longest idle memory back until at most target_bytes are idle (0: all of it).

    Returns
    -------
    int
        Bytes given back.
    """
    cdef Py_ssize_t freed_bytes, target = checked_bytes("target_bytes", target_bytes)
    with nogil:
        freed_bytes = trim_to(target, NEVER_NS)
    return freed_bytes


def checked(name, value, convert, most):
    try:
        number = convert(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if isinstance(value, (bool, str)) or not 0 <= number <= most:
        kind = "number" if convert is float else "whole number"
        raise ConfigError(f"{name} must be a {kind} from 0 to {most}, got {value!r}")
    return number


def checked_bytes(name, value):
    return checked(name, value, operator.index, LARGEST_BYTES)


def configure(*, max_idle_bytes=None, idle_seconds=None, pressure_limit_bytes=None):
    """Change settings of the pool, all or none; what is None stays as it is.

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
    global next_rss_ns
    cdef Figures new = pool
    if max_idle_bytes is not None:
        new.max_idle_bytes = checked_bytes("max_idle_bytes", max_idle_bytes)
    if idle_seconds is not None:
        new.idle_seconds = checked("idle_seconds", idle_seconds, float, MOST_SECONDS)
    if pressure_limit_bytes is not None:
        new.pressure_limit_bytes = checked_bytes(
            "pressure_limit_bytes", pressure_limit_bytes)
    lock()
    pool.max_idle_bytes = new.max_idle_bytes
    pool.idle_seconds = new.idle_seconds
    pool.pressure_limit_bytes = new.pressure_limit_bytes
    next_rss_ns = 0
    unlock()
    trim_to(new.max_idle_bytes, NEVER_NS)


def set_pressure_limit(rss_bytes):
    """Keep nothing while the RSS of this process is above rss_bytes; 0 means no limit."""
    configure(pressure_limit_bytes=rss_bytes)


def statistics():
    """Figures of the pool, as a dict.

    ``in_use_*`` is what live buffers were asked for; ``idle_*``, ``evicted_bytes`` (no room
    within the bound, or under pressure) and ``trimmed_bytes`` (idle too long, or trimmed on
    request) are whole slabs. ``hits_count`` and ``misses_count`` leave out small buffers.
    """
    cdef Figures seen
    lock()
    seen = pool
    unlock()
    return seen
