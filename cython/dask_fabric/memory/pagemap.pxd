"""Page maps: what the pages of a process are, as /proc/PID/pagemap shows it."""

from libc.stdint cimport uint64_t

cdef enum Category:             # of PAGEMAP_SCAN, whose names older headers lack
    PAGE_IS_FILE = 1 << 2
    PAGE_IS_PRESENT = 1 << 3
    PAGE_IS_SWAPPED = 1 << 4

cdef enum:
    PAGE_MAP_BYTES = 8          # an entry of /proc/PID/pagemap

cdef bint has_page(
    int fd, uint64_t address, uint64_t nbytes, int without, int one_of, bint scans=*
) noexcept nogil
cdef bint tells_huge_pages(int fd) noexcept nogil
