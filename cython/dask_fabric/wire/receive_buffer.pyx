"""Where the bytes of a stream are received: in a staging buffer, or in their final memory."""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

from dask_fabric.linux cimport iovec
from dask_fabric.memory.arrays cimport keep_small
from dask_fabric.memory.pool cimport Buffer, allocate, count_use

cdef enum:
    STAGING_BYTES = 128 << 10
    READ_BYTES = 16 << 10
    KEPT_VECTOR_COUNT = 64
    # The first byte of a huge page makes all of it resident, also the part of a frame that has not
    # arrived: up to two pages, at its begin and at its end. So only this many comms at a time
    # receive into huge pages: 64 MiB together that a peer may claim and not send.
    HUGE_BYTES = 2 << 20
    AHEAD_COUNT = 16

cdef int ahead_count = 0
cdef Buffer spare_staging = None    # an empty one, for whichever comm reads next


@cython.auto_pickle(False)
@cython.final
cdef class ReceiveBuffer:
    """The staging buffer, and the vectors of what is being received in place.

    Whoever reads puts bytes where `room` says, and reports them to `received`.
    """

    def __cinit__(self):
        self.next_read_bytes = READ_BYTES

    def __dealloc__(self):
        self.filled()
        free(self.vectors)

    def __sizeof__(self):
        """With its own buffers, and without what is being received in place."""
        cdef Py_ssize_t nbytes = self.vector_capacity * sizeof(iovec)
        if self.staging is not None:
            nbytes += self.staging.nbytes
        return object.__sizeof__(self) + nbytes

    cdef char *room(self, Py_ssize_t *nbytes) except NULL:
        """Where the next bytes belong, and how many; never none."""
        if self.missing_bytes > 0:
            nbytes[0] = self.vectors[self.vector_index].iov_len
            return <char *> self.vectors[self.vector_index].iov_base
        if self.start == self.end:
            self.start = self.end = 0
            if self.staging is None:
                self.staging = new_staging()
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
        if self.missing_bytes == 0:
            self.filled()

    cdef Py_ssize_t staged_bytes(self) noexcept:
        return self.end - self.start

    cpdef bint staging_is_full(self) noexcept:
        return self.end - self.start >= STAGING_BYTES

    cdef take_staged(self, Py_ssize_t nbytes):
        """Remove the first bytes that arrived: those of the handshake."""
        taken = PyBytes_FromStringAndSize(self.staging.data + self.start, nbytes)
        self.start += nbytes
        return taken

    cdef void release_staging(self) noexcept:
        """Pass the staging buffer on if it is empty: an idle comm needs none."""
        global spare_staging
        if self.start != self.end or self.staging is None:
            return
        if spare_staging is None and self.staging.nbytes == STAGING_BYTES:
            spare_staging = self.staging
            count_use(spare_staging, -1)
        self.staging = None

    cdef void filled(self) noexcept:
        """No bytes are missing any more in the vectors."""
        global ahead_count
        self.missing_bytes = 0
        ahead_count -= self.is_ahead
        self.is_ahead = False
        if self.vector_capacity > KEPT_VECTOR_COUNT:
            free(self.vectors)
            self.vectors = NULL
            self.vector_capacity = 0
            self.begin_vectors()

    cdef bint _may_be_ahead(self) noexcept:
        """Whether this comm may receive into huge pages, which it then may until it is filled."""
        global ahead_count
        if not self.is_ahead and ahead_count < AHEAD_COUNT:
            self.is_ahead = True
            ahead_count += 1
        return self.is_ahead

    cdef void begin_vectors(self) noexcept:
        self.vector_count = self.vector_index = 0

    cdef give(self, char *data, Py_ssize_t nbytes):
        """Fill a buffer from the staged bytes; what they cannot fill becomes a vector."""
        cdef Py_ssize_t staged = min(nbytes, self.end - self.start)
        if nbytes >= HUGE_BYTES and not self._may_be_ahead():
            keep_small(data)
        if staged:
            memcpy(data, self.staging.data + self.start, staged)
            self.start += staged
        self.release_staging()
        if staged < nbytes:
            self._reserve_vector()
            self.vectors[self.vector_count].iov_base = data + staged
            self.vectors[self.vector_count].iov_len = nbytes - staged
            self.vector_count += 1
            self.missing_bytes += nbytes - staged

    cdef _reserve_vector(self):
        cdef iovec *grown
        cdef size_t capacity = max(<size_t> 8, 2 * self.vector_capacity)
        if self.vector_count < self.vector_capacity:
            return
        grown = <iovec *> realloc(self.vectors, capacity * sizeof(iovec))
        if grown == NULL:
            raise MemoryError()  # untested: malloc does not fail at will
        self.vectors = grown
        self.vector_capacity = capacity

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


cdef Buffer new_staging():
    global spare_staging
    cdef Buffer staging = spare_staging
    if staging is None:
        return allocate(STAGING_BYTES)
    count_use(staging, 1)
    spare_staging = None
    return staging
