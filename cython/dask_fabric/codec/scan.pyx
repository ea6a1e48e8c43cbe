from libc.string cimport memcmp, memset

from dask_fabric.errors import ProtocolError

cdef enum Kind:
    SCALAR
    UNSIGNED
    STRING
    BINARY
    ARRAY
    MAP
    INVALID

# By the first byte of an item: its kind, the width of its number (a value, length or count), the
# number itself if the first byte holds it, and the bytes besides (the type of an ext).
cdef unsigned char KIND[256]
cdef unsigned char WIDTH[256]
cdef unsigned char NUMBER[256]
cdef unsigned char EXTRA[256]

# What CPython allocates for the objects, about.
cdef enum:
    TEXT_NBYTES = 50
    NUMBER_NBYTES = 32
    ARRAY_NBYTES = 64
    ARRAY_ITEM_NBYTES = 8
    MAP_NBYTES = 64
    MAP_ITEM_NBYTES = 100

cdef const char *REFERENCE = "__Payload__"
cdef int REFERENCE_NBYTES = 11


cdef void describe(int first, int last, Kind kind, int width, int extra) noexcept:
    cdef int tag
    for tag in range(first, last + 1):
        KIND[tag] = kind
        WIDTH[tag] = width
        NUMBER[tag] = tag - first
        EXTRA[tag] = extra


cdef void describe_doubling(int first, int count, Kind kind, int width, int extra) noexcept:
    cdef int step
    for step in range(count):
        describe(first + step, first + step, kind, width << step, extra)


cdef void build_tables() noexcept:
    cdef int step
    memset(KIND, INVALID, 256)
    describe(0x00, 0x7F, UNSIGNED, 0, 0)
    describe(0x80, 0x8F, MAP, 0, 0)
    describe(0x90, 0x9F, ARRAY, 0, 0)
    describe(0xA0, 0xBF, STRING, 0, 0)
    describe(0xC0, 0xC0, SCALAR, 0, 0)              # nil
    describe(0xC2, 0xC3, SCALAR, 0, 0)              # booleans
    describe_doubling(0xC4, 3, BINARY, 1, 0)
    describe_doubling(0xC7, 3, BINARY, 1, 1)        # ext
    describe_doubling(0xCA, 2, SCALAR, 4, 0)        # floats
    describe_doubling(0xCC, 4, UNSIGNED, 1, 0)
    describe_doubling(0xD0, 4, SCALAR, 1, 0)        # signed integers
    for step in range(5):                           # ext of 1, 2, 4, 8 and 16 bytes
        describe(0xD4 + step, 0xD4 + step, BINARY, 0, 1)
        NUMBER[0xD4 + step] = 1 << step
    describe_doubling(0xD9, 3, STRING, 1, 0)
    describe_doubling(0xDC, 2, ARRAY, 2, 0)
    describe_doubling(0xDE, 2, MAP, 2, 0)
    describe(0xE0, 0xFF, SCALAR, 0, 0)


build_tables()


cdef inline uint64_t big_endian(const unsigned char *data, int width) noexcept nogil:
    cdef uint64_t number = 0
    cdef int i
    for i in range(width):
        number = number << 8 | data[i]
    return number


cdef ScanResult scan(const unsigned char *data, Py_ssize_t nbytes, uint64_t payload_count,
                     bint *special, uint64_t *made_bytes) noexcept nogil:
    cdef Py_ssize_t at = 0
    cdef uint64_t pending = 1, number
    cdef unsigned char tag
    # 1 behind the head of a map with one item, 2 behind the key that makes it a reference
    cdef int reference = 0, next_reference
    special[0] = False
    made_bytes[0] = 0
    while pending:
        if pending > <uint64_t>(nbytes - at):
            return SCAN_TRUNCATED
        pending -= 1
        tag = data[at]
        at += 1
        if WIDTH[tag] > nbytes - at:
            return SCAN_TRUNCATED
        number = big_endian(data + at, WIDTH[tag]) if WIDTH[tag] else NUMBER[tag]
        at += WIDTH[tag]
        next_reference = 0
        if KIND[tag] == STRING or KIND[tag] == BINARY:
            number += EXTRA[tag]
            if number > <uint64_t>(nbytes - at):
                return SCAN_TRUNCATED
            if KIND[tag] == STRING and number > 1 and memcmp(data + at, b"__", 2) == 0:
                if (reference == 1 and number == <uint64_t>REFERENCE_NBYTES
                        and memcmp(data + at, REFERENCE, REFERENCE_NBYTES) == 0):
                    next_reference = 2
                else:
                    special[0] = True
            at += <Py_ssize_t>number
            made_bytes[0] += TEXT_NBYTES + number
        elif KIND[tag] == MAP:
            pending += 2 * number
            made_bytes[0] += MAP_NBYTES + MAP_ITEM_NBYTES * number
            next_reference = number == 1
        elif KIND[tag] == ARRAY:
            pending += number
            made_bytes[0] += ARRAY_NBYTES + ARRAY_ITEM_NBYTES * number
        elif KIND[tag] == INVALID:
            return SCAN_INVALID
        elif reference == 2 and KIND[tag] == UNSIGNED and 0 < payload_count < number:
            return SCAN_REFERENCE
        elif WIDTH[tag]:
            made_bytes[0] += NUMBER_NBYTES
        reference = next_reference
    return SCAN_OK if at == nbytes else SCAN_TRAILING


cdef bint next_large(const unsigned char *data, Py_ssize_t nbytes, Py_ssize_t *at,
                     Py_ssize_t least_nbytes, Item *item) noexcept nogil:
    cdef unsigned char tag
    cdef uint64_t number
    while at[0] < nbytes:
        item.start = at[0]
        tag = data[at[0]]
        at[0] += 1
        number = big_endian(data + at[0], WIDTH[tag]) if WIDTH[tag] else NUMBER[tag]
        at[0] += WIDTH[tag]
        if KIND[tag] == STRING or KIND[tag] == BINARY:
            item.body = at[0]
            item.is_text = KIND[tag] == STRING
            at[0] += <Py_ssize_t>number + EXTRA[tag]
            if number >= <uint64_t>least_nbytes and not EXTRA[tag]:     # an ext is neither
                return True
    return False


cdef object scan_error(ScanResult result):
    if result == SCAN_TRUNCATED:
        return ProtocolError("the message ends before its msgpack does")
    if result == SCAN_TRAILING:
        return ProtocolError("the message goes on behind its msgpack")
    if result == SCAN_INVALID:
        return ProtocolError("the message holds the byte 0xc1, which msgpack never uses")
    return ProtocolError("the message refers to a payload that is not in its header")
