"""Calls of the operating system, by the pool and memory files.

Only `obtain` needs the GIL, none needs a lock.

Memory below 2 MiB comes from the C library. Larger memory is mapped with huge pages, which cost a
third of the time when they are fresh. Writing one byte makes a whole huge page resident, so
neighbouring slabs share the pages at their borders: they are cut one after the other from a *run*,
a mapping of 128 MiB, and each is unmapped separately.
"""

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.stdio cimport sscanf
from libc.stdlib cimport free, malloc
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open as open_file
from posix.mman cimport (
    MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE,
    MAP_PRIVATE, PROT_READ, PROT_WRITE, madvise, mmap, munmap,
)
from posix.stdlib cimport posix_memalign
from posix.time cimport CLOCK_MONOTONIC_COARSE, clock_gettime, timespec
from posix.unistd cimport _SC_PAGESIZE, close, read, sysconf

from dask_fabric.linux cimport SYS_mremap, pthread_create, pthread_detach, pthread_t, syscall

cdef enum:
    # Older headers lack these.
    MADV_POPULATE_READ = 22
    MADV_COLLAPSE = 25
    MREMAP_MAYMOVE = 1
    MREMAP_FIXED = 2
    MREMAP_DONTUNMAP = 4
    PIECE_BYTES = 2 << 20       # of a huge page no part is unmapped alone
    RUN_BYTES = 128 << 20
    SHARED_BYTES = 32 << 20     # larger memory gets a mapping of its own,
    ROUNDED_PART = 64           # rounded up to whole huge pages if that adds at most 1/64

PAGE_BYTES = sysconf(_SC_PAGESIZE)
on_leaving = NULL

# The unused rest of the current run.
cdef char *run = NULL
cdef Py_ssize_t run_bytes = 0


cdef Py_ssize_t mapped_bytes(Py_ssize_t capacity_bytes) noexcept nogil:
    """The size of the mapping for memory of `HUGE_BYTES` or more, with the room behind it."""
    cdef Py_ssize_t least_bytes = capacity_bytes + PAGE_BYTES
    cdef Py_ssize_t huge_bytes = (least_bytes + HUGE_BYTES - 1) // HUGE_BYTES * HUGE_BYTES
    cdef Py_ssize_t most_bytes = least_bytes + capacity_bytes // ROUNDED_PART
    return least_bytes if capacity_bytes <= SHARED_BYTES or huge_bytes > most_bytes else huge_bytes


cdef char *map_aligned(Py_ssize_t nbytes, int protection, int flags) noexcept nogil:
    """Map anonymous memory that is aligned to a huge page; NULL if there is none."""
    # Kernels differ in which mappings they align by themselves.
    cdef Py_ssize_t lead_bytes
    cdef char *data = <char *>mmap(NULL, nbytes + HUGE_BYTES, protection,
                                   MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0)
    if data == <char *>MAP_FAILED:
        return NULL
    lead_bytes = -<uintptr_t>data % HUGE_BYTES
    if lead_bytes:
        munmap(data, lead_bytes)
    data += lead_bytes
    munmap(data + nbytes, HUGE_BYTES - lead_bytes)
    return data


cdef char *map_huge(Py_ssize_t nbytes) noexcept nogil:
    cdef char *data = map_aligned(nbytes, PROT_READ | PROT_WRITE, 0)
    if data != NULL:
        madvise(data, nbytes, MADV_HUGEPAGE)    # a kernel without huge pages is slower, not wrong
    return data


cdef char *cut(Py_ssize_t nbytes) noexcept:
    """Cut the next piece off the run; start a new run if too little is left."""
    global run, run_bytes
    cdef char *data
    if run_bytes < nbytes:
        data = map_huge(RUN_BYTES)
        if data == NULL:
            return map_huge(nbytes)
        if run_bytes:
            munmap(run, run_bytes)
        run, run_bytes = data, RUN_BYTES
    data = run
    run += nbytes
    run_bytes -= nbytes
    return data


cdef void prefer_huge_pages(char *data, Py_ssize_t capacity_bytes) noexcept nogil:
    """Use huge pages again for pages that are not resident yet."""
    madvise(data, mapped_bytes(capacity_bytes), MADV_HUGEPAGE)


cdef void forgo_huge_pages(char *data, Py_ssize_t capacity_bytes, bint is_fresh) noexcept nogil:
    """Use small pages from now on, so that only written pages become resident.

    A neighbour's huge page may have made a part of fresh memory resident already: that is freed.
    """
    cdef Py_ssize_t nbytes = mapped_bytes(capacity_bytes)
    madvise(data, nbytes, MADV_NOHUGEPAGE)
    if is_fresh:
        madvise(data, nbytes, MADV_DONTNEED)


cdef int make_huge_page(char *data) noexcept nogil:
    """Put a huge page under memory of a file; 0, or an errno. Its content stays.

    ``MADV_COLLAPSE`` (Linux 6.1) needs no leave of the host, unlike ``MADV_HUGEPAGE``, for which
    files have none by default (``shmem_enabled``). It wants one page to be there already.
    """
    if madvise(data, PAGE_BYTES, MADV_POPULATE_READ) or madvise(data, HUGE_BYTES, MADV_COLLAPSE):
        return errno
    return 0


# ---------------------------------------------------------------- for memory files

cdef char *reserve(uint64_t nbytes) noexcept nogil:
    """Addresses that begin where a page of the page table does; NULL if there are none."""
    return map_aligned(nbytes, 0, MAP_NORESERVE)


cdef char *move_page_table(char *data, uint64_t nbytes) noexcept nogil:
    """Move the page table of a shared mapping elsewhere; the mapping gets pages as it is used.

    NULL before Linux 5.13, which cannot do that with shared mappings.
    """
    cdef long flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP
    cdef char *alias = reserve(nbytes)
    if alias == NULL:
        return NULL
    # Not mremap(3): libraries replace it to know what is mapped, and one of them loses the last
    # argument. The mapping would lie at address 0.
    if syscall(SYS_mremap, data, nbytes, nbytes, flags, alias) == -1:
        munmap(alias, nbytes)
        return NULL
    return alias


cdef struct Alias:
    char *data
    uint64_t nbytes


cdef void *_unmap_alias(void *argument) noexcept nogil:
    """Empty the page table piece by piece first: other calls wait for a piece, not for it all.

    Since Linux 6.17 they do not wait at all: munmap locks the address space, madvise the mapping.
    """
    cdef Alias *alias = <Alias *> argument
    cdef uint64_t offset = 0
    while offset < alias.nbytes:
        madvise(
            alias.data + offset, min(alias.nbytes - offset, <uint64_t> PIECE_BYTES), MADV_DONTNEED
        )
        offset += PIECE_BYTES
    munmap(alias.data, alias.nbytes)
    free(alias)
    return NULL


cdef void unmap_later(char *data, uint64_t nbytes) noexcept nogil:
    cdef pthread_t thread
    cdef Alias *alias = <Alias *> malloc(sizeof(Alias))
    if alias != NULL:
        alias.data, alias.nbytes = data, nbytes
        if pthread_create(&thread, NULL, _unmap_alias, alias) == 0:
            pthread_detach(thread)
            return
        free(alias)
    munmap(data, nbytes)


cdef void *map_foreign(int fd, uint64_t begin, uint64_t nbytes, bint aligns) noexcept nogil:
    """Map a part of a peer's file copy-on-write; MAP_FAILED if that is impossible.

    A huge page of the file is mapped by one entry of the page table, at its first access, only if
    it lies at a multiple of its size in memory too. So a place is looked for, and wished for. After
    MAP_FIXED failed there might be a gap, which other threads fill.
    """
    cdef uint64_t lead_bytes = begin % HUGE_BYTES
    cdef char *place = NULL
    if aligns and nbytes >= HUGE_BYTES:
        place = reserve(lead_bytes + nbytes)
    if place != NULL:
        munmap(place, lead_bytes + nbytes)
        place += lead_bytes
    # Without MAP_NORESERVE, an array that is larger than the host's memory is refused.
    return mmap(place, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, begin)


# ---------------------------------------------------------------- for the pool

cdef char *obtain(Py_ssize_t capacity_bytes) noexcept:
    cdef void *data = NULL
    if capacity_bytes > SHARED_BYTES:
        return map_huge(mapped_bytes(capacity_bytes))
    if capacity_bytes >= HUGE_BYTES:
        return cut(mapped_bytes(capacity_bytes))
    if posix_memalign(&data, CACHE_LINE_BYTES, capacity_bytes + CACHE_LINE_BYTES):
        return NULL
    return <char *>data


cdef void give_back(char *data, Py_ssize_t capacity_bytes) noexcept nogil:
    cdef uintptr_t first, end
    leaves(data, capacity_bytes)
    if capacity_bytes >= HUGE_BYTES:
        if munmap(data, mapped_bytes(capacity_bytes)):      # no more mappings: vm.max_map_count
            madvise(data, mapped_bytes(capacity_bytes), MADV_DONTNEED)
        return
    # free() may keep the memory in its heap: return the pages to the system now.
    first = whole_pages(<uintptr_t>data)
    end = (<uintptr_t>data + capacity_bytes) // PAGE_BYTES * PAGE_BYTES
    if end > first:
        madvise(<void *>first, end - first, MADV_DONTNEED)
    free(data)


cdef int64_t coarse_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef Py_ssize_t resident_bytes() noexcept nogil:
    """RSS of this process; 0 if /proc cannot be read. Opened each time: it changes with a fork."""
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
    return page_count * PAGE_BYTES
