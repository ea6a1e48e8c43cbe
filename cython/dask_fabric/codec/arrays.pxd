"""Plain numpy arrays: sent from their own memory, rebuilt over the memory that was received."""

from dask_fabric.codec.layout cimport Entry, Reader

cdef object ndarray

# The array's entry, with its frame appended to frames; None where distributed has to do it.
cdef bytes encode_array(object array, list frames)
# Whether encode_array would take it, judged without looking at its data.
cdef bint is_plain(object array) except -1
# Check an entry against the size of its frame, without a word to numpy.
cdef int parse_array(Reader *reader, Entry *entry, Py_ssize_t frame_nbytes) except -1
cdef object build_array(Entry *entry, object frame)
# The header that distributed's own serializer makes for such an array.
cdef dict array_sub_header(Entry *entry)
