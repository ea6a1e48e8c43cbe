"""Plain numpy arrays: sent from their own memory, rebuilt over the received memory."""

from dask_fabric.codec.layout cimport Entry, Reader

cdef object ndarray

# Make the array's entry, and append its frame to frames; None if distributed must serialize it.
cdef bytes encode_array(object array, list frames)
# Whether encode_array would accept the array, without a look at its data.
cdef bint is_plain(object array) except -1
# Check an entry against the size of its frame, without numpy.
cdef int parse_array(Reader *reader, Entry *entry, Py_ssize_t frame_nbytes) except -1
cdef object build_array(Entry *entry, object frame)
# The header that distributed's own serializer makes for such an array.
cdef dict array_sub_header(Entry *entry)
