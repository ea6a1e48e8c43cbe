"""A grammar of ``dtype.str``.

NumPy's own parser accepts much more than NumPy writes, and some of that crashes the process: it
divides by the 0 of ``<m8[s/0]``. So a peer's text is matched here first, byte by byte::

    text   = order kind size [unit]
    order  = "<" | ">", or "|" if items have one byte or are bytes themselves (S)
    kind   = "b" | "i" | "u" | "f" | "c" | "m" | "M" | "S" | "U"
    size   = a size that the kind has; for S and U from 1, up to as many bytes as fit a C int
    unit   = "[" [2 ... 2**31 - 1] name "]", for m and M
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcmp

from dask_fabric.errors import ProtocolError

import numpy

cdef object make_dtype = numpy.dtype

cdef enum:
    INT_MAX = 0x7FFFFFFF

cdef const char *UNITS = " Y M W D h m s ms us ns ps fs as "
cdef Py_ssize_t LONG_DOUBLE_NBYTES = make_dtype("g").itemsize
cdef dict dtype_by_text = {}


cdef Py_ssize_t itemsize_of(const unsigned char *text, Py_ssize_t nbytes) noexcept:
    cdef Py_ssize_t at = 2
    cdef unsigned char order, kind
    cdef uint64_t size
    if nbytes < 3:
        return 0
    order, kind = text[0], text[1]
    size = read_number(text, nbytes, &at)
    if not is_order(order, kind, size) or not is_size(kind, size):
        return 0
    if at < nbytes and not ((kind == c"m" or kind == c"M") and is_unit(text + at, nbytes - at)):
        return 0
    return 4 * size if kind == c"U" else size


cdef uint64_t read_number(const unsigned char *text, Py_ssize_t nbytes, Py_ssize_t *at) noexcept:
    """Read a number from 1 to INT_MAX without leading zeros; 0 for anything else."""
    cdef uint64_t number = 0
    if at[0] < nbytes and text[at[0]] == c"0":
        return 0
    while at[0] < nbytes and c"0" <= text[at[0]] <= c"9":
        number = 10 * number + text[at[0]] - c"0"
        at[0] += 1
        if number > INT_MAX:
            return 0
    return number


cdef bint is_order(unsigned char order, unsigned char kind, uint64_t size) noexcept:
    if kind == c"S" or (size == 1 and kind != c"U"):
        return order == c"|"
    return order == c"<" or order == c">"


cdef bint is_size(unsigned char kind, uint64_t size) noexcept:
    if kind == c"b":
        return size == 1
    if kind == c"i" or kind == c"u":
        return size == 1 or size == 2 or size == 4 or size == 8
    if kind == c"f":
        return size == 2 or size == 4 or size == 8 or size == <uint64_t>LONG_DOUBLE_NBYTES
    if kind == c"c":
        return size == 8 or size == 16 or size == 2 * <uint64_t>LONG_DOUBLE_NBYTES
    if kind == c"m" or kind == c"M":
        return size == 8
    if kind == c"S":
        return size > 0
    return kind == c"U" and 0 < size <= INT_MAX // 4


cdef bint is_unit(const unsigned char *text, Py_ssize_t nbytes) noexcept:
    cdef Py_ssize_t at = 1, length
    cdef const char *name = UNITS
    if text[0] != c"[" or text[nbytes - 1] != c"]":
        return False
    if nbytes > 1 and c"0" <= text[1] <= c"9" and read_number(text, nbytes, &at) < 2:
        return False
    length = nbytes - 1 - at
    if length != 1 and length != 2:
        return False
    while name[1]:      # each name is between blanks
        if (memcmp(name + 1, text + at, length) == 0 and name[0] == c" "
                and name[1 + length] == c" "):
            return True
        name += 1
    return False


cdef object dtype_of(const unsigned char *text, Py_ssize_t nbytes):
    """The dtype of a text that `itemsize_of` has accepted."""
    cdef bytes spelling = text[:nbytes]
    dtype = dtype_by_text.get(spelling)
    if dtype is not None:
        return dtype
    try:
        dtype = make_dtype(spelling.decode())
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"NumPy does not know the dtype {spelling!r}") from error
    if len(dtype_by_text) >= MAX_CACHED_DTYPES:
        dtype_by_text.clear()
    dtype_by_text[spelling] = dtype
    return dtype
