"""A check of msgpack bytes that allocates nothing, before msgpack itself reads them."""

from libc.stdint cimport uint64_t

cdef enum ScanResult:
    SCAN_OK
    SCAN_TRUNCATED          # an item, length or count reaches past the end
    SCAN_TRAILING           # bytes follow the message
    SCAN_INVALID            # the byte 0xc1, which msgpack never uses
    SCAN_REFERENCE          # a reference to a payload that does not exist

# Sets ``special`` if a string that is not a reference starts with "__": only then may a map encode
# an object. Without payloads there are no references. ``made_bytes`` is the memory that the decoded
# objects take, about: up to 72 times the bytes here.
cdef ScanResult scan(const unsigned char *data, Py_ssize_t nbytes, uint64_t payload_count,
                     bint *special, uint64_t *made_bytes) noexcept nogil

cdef object scan_error(ScanResult result)


cdef struct Item:
    Py_ssize_t start        # of its head
    Py_ssize_t body
    bint is_text

# Find the next bytes or text of at least `least_nbytes`, and advance `at` behind it. Nothing is
# checked: the msgpack must be our own.
cdef bint next_large(const unsigned char *data, Py_ssize_t nbytes, Py_ssize_t *at,
                     Py_ssize_t least_nbytes, Item *item) noexcept nogil
