"""The pool of receive buffers of this process.

Theory of operation
-------------------
The problem: the kernel hands out fresh memory page by page, each cleared first, which costs more
than the copy into it. But memory that is kept idle counts as resident, and Dask spills, pauses and
kills workers by resident memory.

* Buffers below ``SMALL_BYTES`` are plain malloc. Larger ones are *slabs*, in size classes (32 per
  doubling, so that a slab exceeds its frame by at most 1/32). Frames above the pool's bound are
  allocated and freed each time.
* When a buffer's last view dies, its slab becomes *idle* (``memory.idle``): it goes on the free
  list of its class. `allocate` takes the most recently used slab, whose memory is still in the
  caches.
* If its class has no idle slab, a buffer may borrow one of a larger class, up to a quarter larger.
  The sum of what all buffers in use borrow is bounded (`most_bytes`).
* Idle slabs are bounded in bytes and in time, and freed at once under memory pressure. The oldest
  go first. Allocation and release free a few in passing, and native threads trim the rest.
* A slab may be *pinned*, for copies to and from a device. It then stays in the pool until the
  process ends.
* Writing one byte makes a whole huge page resident. So a buffer may forgo huge pages until it is
  recycled (`use_small_pages`): its pages then become resident as they are written.

The GIL guards buffers in use. A lock guards idle slabs, because threads without the GIL trim them.
"""

import operator

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc

from dask_fabric.atomics cimport add_relaxed
from dask_fabric.memory.files cimport (
    Mapping, current_epoch, free_slab, has_room, keep_small_pages, needs_care, next_reusable,
    obtain_slab, release_slab, reopen_slab, serves, unmap,
)
from dask_fabric.memory.idle cimport (
    LARGEST_BYTES, NEVER_NS, STEP_COUNT, Figures, Slab, class_bytes, figures, file_bytes,
    has_idle, keep_idle, set_limits, snapshot, take_idle, trim_expired, trim_to, usage,
)
from dask_fabric.memory.system cimport (
    CACHE_LINE_BYTES, HUGE_BYTES, forgo_huge_pages, give_back, obtain, prefer_huge_pages,
    whole_pages,
)

from dask_fabric.errors import ConfigError

cdef extern from *:
    int __builtin_clzll(unsigned long long) nogil

cdef enum:
    SMALL_BYTES = 64 << 10
    NOT_POOLED = -1
    NOT_CACHED = -2
    STEP_BYTES = 16             # the largest alignment of any type
    MOST_SECONDS = 1000000000   # fits 64 bits in nanoseconds
    PINNED_LIMIT_BYTES = 256 << 20
    # The bound of what all buffers borrow: this part of the bytes in use, or if more, these bytes.
    BORROWED_PART = 64
    BORROWED_BYTES = 32 << 20

# By how much the slabs in use exceed the size classes of their buffers, in total.
cdef Py_ssize_t borrowed_bytes = 0


cdef inline int class_of(Py_ssize_t nbytes) noexcept nogil:
    """The smallest class that holds nbytes, which lie between SMALL_BYTES and LARGEST_BYTES."""
    cdef unsigned long long last = nbytes - 1
    cdef int exponent = 63 - __builtin_clzll(last)
    return (exponent - 16) * STEP_COUNT + <int>(last >> (exponent - 5)) - (STEP_COUNT - 1)


cdef inline Py_ssize_t most_bytes(Py_ssize_t nbytes) noexcept:
    """The largest slab that a buffer may borrow if its own class has none idle."""
    cdef Py_ssize_t bound_bytes = max(<Py_ssize_t>BORROWED_BYTES,
                                      usage.in_use_bytes // BORROWED_PART)
    return nbytes + min(nbytes // 4, bound_bytes - borrowed_bytes)


cdef void release(Buffer buffer) noexcept:
    """Return a buffer's slab to the pool: it becomes idle."""
    global borrowed_bytes
    cdef char *data = buffer.data - buffer.lead_bytes
    cdef Slab *slab
    if buffer.size_class == NOT_POOLED:
        free(data)
        return
    if buffer.size_class >= 0:
        borrowed_bytes -= buffer.capacity_bytes - class_bytes(class_of(buffer.nbytes))
    if buffer.slab and not release_slab(
        buffer.slab, buffer.epoch, data, file_bytes(buffer.capacity_bytes)
    ):
        return                          # peers may have it mapped
    slab = <Slab *>malloc(sizeof(Slab)) if buffer.size_class >= 0 else NULL
    if slab == NULL:
        if buffer.slab:
            free_slab(buffer.slab, buffer.epoch, data, file_bytes(buffer.capacity_bytes))
        elif not buffer.is_pinned:
            give_back(data, buffer.capacity_bytes)
        return
    slab.data = data
    slab.capacity_bytes = buffer.capacity_bytes
    slab.size_class = buffer.size_class
    slab.is_pinned = buffer.is_pinned
    slab.has_small_pages = buffer.has_small_pages
    slab.number, slab.epoch = buffer.slab, buffer.epoch
    keep_idle(slab)


cdef void reclaim(bint looks_at_all) noexcept nogil:
    """Make those slabs idle that peers had mapped, and have no more: some of them, or all."""
    cdef Slab *slab
    cdef char *data = NULL
    cdef Py_ssize_t capacity_bytes = 0
    cdef int size_class = 0
    cdef uint32_t number = next_reusable(&data, &capacity_bytes, &size_class, looks_at_all)
    while number:
        slab = <Slab *>malloc(sizeof(Slab)) if size_class >= 0 else NULL
        if slab == NULL:
            free_slab(number, current_epoch(), data, file_bytes(capacity_bytes))
        else:
            slab[0] = Slab(data=data, capacity_bytes=capacity_bytes, size_class=size_class,
                           is_pinned=False, has_small_pages=False, number=number,
                           epoch=current_epoch())
            keep_idle(slab)
        number = next_reusable(&data, &capacity_bytes, &size_class, looks_at_all)


# ---------------------------------------------------------------- buffers

@cython.final
@cython.freelist(64)
@cython.auto_pickle(False)      # a copy would free the same memory once more
cdef class Buffer:
    """Contiguous writeable host memory, returned to the pool when its last view dies.

    Made by `allocate` only. Its content is undefined until it is written. It exports a
    one-dimensional buffer of format ``B``.

    Attributes
    ----------
    nbytes : int
        Length in bytes, as requested.
    """

    def __init__(self):
        raise TypeError("a Buffer cannot be made directly: call dask_fabric.memory.pool.allocate")

    def __len__(self):
        return self.nbytes

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.nbytes, 0, flags)

    def __dealloc__(self):
        if self.mapping != NULL:
            unmap(self.mapping)
        elif self.data != NULL:
            count_use(self, -1)
            release(self)


cdef void count_use(Buffer buffer, int sign) noexcept:
    """Count a buffer as in use (1), or not (-1): freed, or a spare that some module keeps."""
    add_relaxed(&usage.in_use_bytes, sign * buffer.nbytes)
    add_relaxed(&usage.in_use_count, sign)


cdef void reuse(Buffer buffer, Slab *slab) noexcept:
    """Give the buffer an idle slab."""
    add_relaxed(&usage.hits_count, 1)
    if slab.has_small_pages and not slab.number:
        prefer_huge_pages(slab.data, slab.capacity_bytes)
    buffer.data = slab.data
    buffer.capacity_bytes = slab.capacity_bytes
    buffer.size_class = slab.size_class
    buffer.is_pinned = slab.is_pinned
    buffer.slab, buffer.epoch = slab.number, slab.epoch
    if buffer.slab:
        reopen_slab(buffer.slab, buffer.epoch)
    free(slab)


cdef void fill(Buffer buffer, Py_ssize_t nbytes) noexcept:
    """Give the buffer a slab, idle or new; `data` stays NULL if memory is short."""
    global borrowed_bytes
    cdef Slab *slab
    cdef int size_class = class_of(nbytes)
    cdef Py_ssize_t capacity_bytes = class_bytes(size_class)
    cdef bint wants_file = serves(nbytes) and has_room(file_bytes(capacity_bytes))
    if needs_care():
        reclaim(False)
    if capacity_bytes <= figures.max_idle_bytes:
        slab = take_idle(size_class, most_bytes(nbytes))
        while slab != NULL and wants_file and not slab.number and not slab.is_pinned:
            # Ordinary memory, idle since the file was full: it would never leave this size class.
            give_back(slab.data, slab.capacity_bytes)
            free(slab)
            slab = take_idle(size_class, most_bytes(nbytes))
        if slab != NULL:
            borrowed_bytes += slab.capacity_bytes - capacity_bytes
            reuse(buffer, slab)
            return
    else:
        size_class = NOT_CACHED
        capacity_bytes = whole_pages(nbytes)
    add_relaxed(&usage.misses_count, 1)
    buffer.capacity_bytes = capacity_bytes
    buffer.size_class = size_class
    buffer.is_fresh = True
    if serves(nbytes):
        buffer.slab = obtain_slab(
            capacity_bytes, file_bytes(capacity_bytes), size_class, &buffer.data
        )
        buffer.epoch = current_epoch()
        if buffer.slab:
            return
    buffer.data = obtain(capacity_bytes)
    if buffer.data == NULL and trim_to(0, NEVER_NS):
        buffer.data = obtain(capacity_bytes)


cpdef Buffer allocate(Py_ssize_t nbytes, uint64_t like=0):
    """Allocate memory for one frame.

    Parameters
    ----------
    nbytes : int
        Length in bytes; 0 is allowed.
    like : int
        An address: a pooled buffer gets the same offset within a cache line, in steps of 16 bytes.

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
    if buffer.size_class != NOT_POOLED:
        buffer.lead_bytes = like % CACHE_LINE_BYTES & -STEP_BYTES
        buffer.data += buffer.lead_bytes
    buffer.nbytes = nbytes
    count_use(buffer, 1)
    return buffer


cdef Buffer buffer_on(Mapping *mapping, char *data, Py_ssize_t nbytes):
    """Make a buffer of memory that is a peer's; with it the mapping ends."""
    cdef Buffer buffer = Buffer.__new__(Buffer)
    buffer.mapping, buffer.data, buffer.nbytes = mapping, data, nbytes
    buffer.size_class = NOT_POOLED
    return buffer


cdef bint pin_slab(Buffer buffer, object pin) except -1:
    """Pin the slab of a buffer until the end of the process.

    Returns whether it is pinned. Small slabs are not, because they share pages with others, and the
    total is bounded.
    """
    if buffer.is_pinned:
        return True
    if (buffer.size_class < 0 or buffer.capacity_bytes < HUGE_BYTES or buffer.slab
            or usage.pinned_bytes + buffer.capacity_bytes > PINNED_LIMIT_BYTES):
        return False
    add_relaxed(&usage.pinned_bytes, buffer.capacity_bytes)
    try:
        pin(<uintptr_t>(buffer.data - buffer.lead_bytes), buffer.capacity_bytes + CACHE_LINE_BYTES)
    except BaseException:
        add_relaxed(&usage.pinned_bytes, -buffer.capacity_bytes)
        raise
    buffer.is_pinned = True
    return True


cdef void use_small_pages(Buffer buffer) noexcept:
    """Forgo huge pages until the slab is recycled, so that only written pages become resident.

    Call this before writing to the buffer: a fresh slab loses its content.
    """
    if buffer.slab:
        keep_small_pages(buffer.slab, buffer.epoch)
    elif (buffer.size_class != NOT_POOLED and buffer.capacity_bytes >= HUGE_BYTES
            and not buffer.is_pinned):
        forgo_huge_pages(buffer.data - buffer.lead_bytes, buffer.capacity_bytes, buffer.is_fresh)
        buffer.has_small_pages = True


# ---------------------------------------------------------------- trimming and settings

cpdef bint has_idle_memory() noexcept nogil:
    """Whether `trim_idle` may have something to do, now or later."""
    return has_idle() or needs_care()


cpdef void trim_idle() noexcept nogil:
    """Free slabs that were idle for too long; under memory pressure, all idle slabs."""
    if needs_care():
        reclaim(True)
    trim_expired()


def trim(target_bytes=0):
    """Free the longest idle slabs until at most target_bytes are idle (0: all of them).

    Returns
    -------
    int
        Bytes freed.
    """
    cdef Py_ssize_t freed_bytes, target = checked_bytes("target_bytes", target_bytes)
    with nogil:
        if needs_care():
            reclaim(True)
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
    """Change settings of the pool, all or none; None leaves a setting unchanged.

    Parameters
    ----------
    max_idle_bytes : int, optional
        Bound of the idle memory; initially 1 GiB. Larger frames are not cached.
    idle_seconds : float, optional
        How long memory may stay idle; initially 10.
    pressure_limit_bytes : int, optional
        RSS of this process above which nothing stays idle; 0, the initial value, means no limit.

    Raises
    ------
    ConfigError
        A value is invalid; the message names it.
    """
    cdef Figures new = snapshot()
    if max_idle_bytes is not None:
        new.max_idle_bytes = checked_bytes("max_idle_bytes", max_idle_bytes)
    if idle_seconds is not None:
        new.idle_seconds = checked("idle_seconds", idle_seconds, float, MOST_SECONDS)
    if pressure_limit_bytes is not None:
        new.pressure_limit_bytes = checked_bytes(
            "pressure_limit_bytes", pressure_limit_bytes)
    set_limits(new.max_idle_bytes, new.idle_seconds, new.pressure_limit_bytes)


def set_pressure_limit(rss_bytes):
    """Keep nothing idle while the RSS of this process is above rss_bytes; 0 means no limit."""
    configure(pressure_limit_bytes=rss_bytes)


def statistics():
    """Statistics of the pool, as a dict.

    ``in_use_*`` sum the requested sizes of live buffers. ``idle_*``, ``evicted_bytes`` (over the
    bound, or under pressure), ``trimmed_bytes`` (idle too long, or trimmed on request) and
    ``pinned_bytes`` (idle or not) sum whole slabs. ``hits_count`` and ``misses_count`` leave out
    small buffers.
    """
    return snapshot()
