"""Page maps: what the pages of a process are, as /proc/PID/pagemap shows it.

Notes
-----
See the kernel's Documentation/admin-guide/mm/pagemap.rst.
"""

from libc.stdint cimport uint64_t
from posix.ioctl cimport ioctl
from posix.unistd cimport pread

from dask_fabric.memory.system cimport PAGE_BYTES

cdef enum:
    PAGES_AT_ONCE = 512

cdef unsigned long PAGEMAP_SCAN = 0xC0606610     # _IOWR('f', 16, struct pm_scan_arg)

cdef struct PageRegion:         # struct page_region
    uint64_t start
    uint64_t end
    uint64_t categories

cdef struct PageScan:           # struct pm_scan_arg
    uint64_t size
    uint64_t flags
    uint64_t start
    uint64_t end
    uint64_t walk_end
    uint64_t regions
    uint64_t region_count
    uint64_t most_pages
    uint64_t inverted_categories
    uint64_t all_categories
    uint64_t any_categories
    uint64_t returned_categories


cdef bint has_page(
    int fd, uint64_t address, uint64_t nbytes, int without, int one_of, bint scans=True
) noexcept nogil:
    """Whether a page of a range lacks one category and is in one of others.

    True also where the kernel does not tell.

    Parameters
    ----------
    fd : int
        Of a page map.
    address, nbytes : int
    without : int
        A `Category`.
    one_of : int
        A set of them; 0 for any page.
    scans : bool
        Whether to use PAGEMAP_SCAN, available since Linux 6.7: a fifth of the time.
    """
    cdef uint64_t page = address // PAGE_BYTES
    cdef uint64_t count = (address % PAGE_BYTES + nbytes + PAGE_BYTES - 1) // PAGE_BYTES
    cdef PageRegion region
    cdef PageScan scan = PageScan(
        sizeof(PageScan), 0, page * PAGE_BYTES, (page + count) * PAGE_BYTES, 0,
        <uint64_t> &region, 1, 1, without, without, one_of, without,
    )
    cdef int region_count = -1
    if scans:
        region_count = ioctl(fd, PAGEMAP_SCAN, &scan)
    return region_count > 0 if region_count >= 0 else _reads_page(fd, page, count, without, one_of)


cdef bint tells_huge_pages(int fd) noexcept nogil:
    """Whether huge pages of files are told from others: PAGEMAP_SCAN does, since Linux 6.7.

    The entries that are read have no `PAGE_IS_FILE` for them before Linux 6.11.
    """
    cdef PageScan nothing = PageScan(sizeof(PageScan), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    return ioctl(fd, PAGEMAP_SCAN, &nothing) == 0


cdef bint _reads_page(
    int fd, uint64_t page, uint64_t left_count, int without, int one_of
) noexcept nogil:
    cdef uint64_t entries[PAGES_AT_ONCE]
    cdef uint64_t count, index
    cdef int categories
    while left_count > 0:
        count = min(left_count, <uint64_t> PAGES_AT_ONCE)
        if pread(fd, entries, count * PAGE_MAP_BYTES, page * PAGE_MAP_BYTES) != <ssize_t> (
            count * PAGE_MAP_BYTES
        ):
            return True
        for index in range(count):
            categories = _categories(entries[index])
            if not categories & without and (one_of == 0 or categories & one_of):
                return True
        page += count
        left_count -= count
    return False


cdef inline int _categories(uint64_t entry) noexcept nogil:
    return (
        (entry >> 63 & 1) * PAGE_IS_PRESENT
        | (entry >> 62 & 1) * PAGE_IS_SWAPPED
        | (entry >> 61 & 1) * PAGE_IS_FILE
    )
