"""A walk over msgpack bytes that allocates nothing, before msgpack itself is let loose on them."""

from libc.stdint cimport uint64_t

cdef enum ScanResult:
    SCAN_OK
    SCAN_TRUNCATED          # an item, length or count reaches past the end
    SCAN_TRAILING           # bytes are left behind the one message
    SCAN_INVALID            # the byte 0xc1, which msgpack never uses
    SCAN_REFERENCE          # a reference to a payload that is not there

# ``special`` tells whether a string that is no reference starts with "__": only then may maps
# stand for something else.
# Without any payloads, nothing is a reference.
cdef ScanResult scan(const unsigned char *data, Py_ssize_t nbytes, uint64_t payload_count,
                     bint *special) noexcept nogil

cdef object scan_error(ScanResult result)


cdef struct Item:
    Py_ssize_t start        # of its head
    Py_ssize_t body
    bint is_text

# Walk on from at, behind which it leaves it, to the next bytes or text of so many bytes. What is
# walked over is msgpack of our own: nothing is checked.
cdef bint next_large(const unsigned char *data, Py_ssize_t nbytes, Py_ssize_t *at,
                     Py_ssize_t least_nbytes, Item *item) noexcept nogil
