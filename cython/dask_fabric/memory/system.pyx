"""What the pool asks of the operating system; nothing here needs the GIL or a lock.

From 2 MiB up memory is mapped on its own, of huge pages; below, it comes from the C library.
"""

from libc.stdint cimport int64_t, uintptr_t
from libc.stdio cimport sscanf
from libc.stdlib cimport free
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open as open_file
from posix.mman cimport (
    MADV_DONTNEED, MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE,
    madvise, mmap, munmap,
)
from posix.stdlib cimport posix_memalign
from posix.time cimport CLOCK_MONOTONIC_COARSE, clock_gettime, timespec
from posix.unistd cimport _SC_PAGESIZE, close, read, sysconf


cdef char *map_huge(Py_ssize_t nbytes) noexcept nogil:
    """Map whole huge pages, aligned to them: an unaligned mapping loses up to two of them."""
    # Kernels differ in what they align by themselves; one page more and none does. That one
    # stays: the room behind the capacity.
    cdef Py_ssize_t lead_bytes, kept_bytes = nbytes + sysconf(_SC_PAGESIZE)
    cdef char *data = <char *>mmap(NULL, kept_bytes + HUGE_BYTES, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if data == <char *>MAP_FAILED:
        return NULL
    lead_bytes = -<uintptr_t>data % HUGE_BYTES
    if lead_bytes:
        munmap(data, lead_bytes)
    data += lead_bytes
    munmap(data + kept_bytes, HUGE_BYTES - lead_bytes)
    madvise(data, kept_bytes, MADV_HUGEPAGE)    # a kernel without huge pages is slower, not wrong
    return data


cdef char *obtain(Py_ssize_t capacity_bytes) noexcept nogil:
    cdef void *data = NULL
    if capacity_bytes >= HUGE_BYTES:
        return map_huge(capacity_bytes)
    if posix_memalign(&data, CACHE_LINE_BYTES, capacity_bytes + CACHE_LINE_BYTES):
        return NULL
    return <char *>data


cdef void give_back(char *data, Py_ssize_t capacity_bytes) noexcept nogil:
    cdef uintptr_t page, first, end
    if capacity_bytes >= HUGE_BYTES:
        munmap(data, capacity_bytes + sysconf(_SC_PAGESIZE))
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
