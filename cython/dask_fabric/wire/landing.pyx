"""Where the bytes of a stream land: in a staging buffer, or in their final memory."""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove

from dask_fabric.linux cimport iovec
from dask_fabric.memory.arrays cimport data_of, new_array
from dask_fabric.memory.pool cimport Buffer, allocate

cdef enum:
    STAGING_BYTES = 128 << 10
    READ_BYTES = 16 << 10


@cython.auto_pickle(False)
cdef class Landing:
    """The staging buffer, and the vectors of what is being received in place.

    Whoever reads puts bytes where `room` says, and reports them to `received`.
    """

    def __cinit__(self):
        self.staging = allocate(STAGING_BYTES)
        self.next_read_bytes = READ_BYTES

    def __dealloc__(self):
        free(self.vectors)

    cdef char *room(self, Py_ssize_t *nbytes) except NULL:
        """Where the next bytes belong, and how many; never none."""
        if self.missing_bytes > 0:
            nbytes[0] = self.vectors[self.vector_index].iov_len
            return <char *> self.vectors[self.vector_index].iov_base
        if self.start == self.end:
            self.start = self.end = 0
            if self.staging.nbytes > STAGING_BYTES:
                self.staging = allocate(STAGING_BYTES)
        elif self.end == self.staging.nbytes:
            self._make_room()
        nbytes[0] = min(self.staging.nbytes - self.end, self.next_read_bytes)
        return self.staging.data + self.end

    cdef void received(self, Py_ssize_t nbytes) noexcept:
        """`nbytes` were put where `room` said."""
        cdef iovec *vector
        if self.missing_bytes == 0:
            self.end += nbytes
            # Small messages in numbers are read in large pieces; else little is read, so that most
            # of a large message goes to its own memory at once.
            self.next_read_bytes = STAGING_BYTES if nbytes == self.next_read_bytes else READ_BYTES
            return
        vector = &self.vectors[self.vector_index]
        vector.iov_base = <char *> vector.iov_base + nbytes
        vector.iov_len -= nbytes
        self.missing_bytes -= nbytes
        if vector.iov_len == 0:
            self.vector_index += 1

    cdef Py_ssize_t staged_bytes(self) noexcept:
        return self.end - self.start

    cdef bint staging_is_full(self) noexcept:
        return self.end - self.start >= STAGING_BYTES

    cdef take_staged(self, Py_ssize_t nbytes):
        """Remove the first bytes that arrived: those of the handshake."""
        taken = PyBytes_FromStringAndSize(self.staging.data + self.start, nbytes)
        self.start += nbytes
        return taken

    cdef void filled(self) noexcept:
        """Somebody else has put all missing bytes into the vectors."""
        self.missing_bytes = 0

    cdef void _begin_vectors(self) noexcept:
        self.vector_count = self.vector_index = 0

    cdef _give(self, char *data, Py_ssize_t nbytes):
        """Fill a buffer from the staged bytes; what they cannot fill becomes a vector."""
        cdef Py_ssize_t staged = min(nbytes, self.end - self.start)
        memcpy(data, self.staging.data + self.start, staged)
        self.start += staged
        if staged < nbytes:
            self._reserve_vector()
            self.vectors[self.vector_count].iov_base = data + staged
            self.vectors[self.vector_count].iov_len = nbytes - staged
            self.vector_count += 1
            self.missing_bytes += nbytes - staged

    cdef _reserve_vector(self):
        cdef iovec *grown
        if self.vector_count < self.vector_capacity:
            return
        self.vector_capacity = max(<size_t> 8, 2 * self.vector_capacity)
        grown = <iovec *> realloc(self.vectors, self.vector_capacity * sizeof(iovec))
        if grown == NULL:
            raise MemoryError()
        self.vectors = grown

    cdef void _make_room(self) except *:
        """Room for more staged bytes, by moving them to the front or to more memory."""
        cdef Py_ssize_t staged = self.end - self.start
        cdef Buffer old = self.staging
        cdef Buffer grown = old
        if staged == old.nbytes:
            # Twice what has arrived, not what is claimed.
            grown = allocate(2 * old.nbytes)
        memmove(grown.data, old.data + self.start, staged)
        self.staging = grown
        self.start, self.end = 0, staged


cdef new_frame(Py_ssize_t nbytes, char **memory, uint64_t like):
    """Writeable memory for one frame: of the pool where it is large, else as Python has it."""
    if nbytes >= POOLED_BYTES:
        array = new_array(nbytes, like)
        memory[0] = data_of(array)
        return PyMemoryView_FromObject(array)
    plain = PyByteArray_FromStringAndSize(NULL, nbytes)
    memory[0] = PyByteArray_AS_STRING(plain)
    return PyMemoryView_FromObject(plain)
