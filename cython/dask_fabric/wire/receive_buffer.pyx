"""The memory that a stream is received into: a staging buffer, or the final memory of frames."""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

from dask_fabric.linux cimport iovec
from dask_fabric.memory.arrays cimport prefer_small_pages
from dask_fabric.memory.pool cimport Buffer, allocate, count_use

cdef enum:
    STAGING_BYTES = 128 << 10
    READ_BYTES = 16 << 10
    KEPT_VECTOR_COUNT = 64
    # Writing one byte makes a whole huge page resident. So a frame may cost up to two huge pages,
    # at its begin and its end, for bytes that the peer claims and never sends. Only this many
    # comms at a time receive into huge pages, which bounds that to 64 MiB.
    HUGE_BYTES = 2 << 20
    HUGE_PAGE_USER_LIMIT = 16

cdef int huge_page_user_count = 0
cdef Buffer spare_staging = None    # an empty buffer for the next comm that reads


@cython.auto_pickle(False)
@cython.final
cdef class ReceiveBuffer:
    """A staging buffer, and the vectors of frames that are received in place.

    The reader writes bytes to `room` and reports them by `received`.
    """

    def __cinit__(self):
        self.next_read_bytes = READ_BYTES

    def __dealloc__(self):
        self.filled()
        free(self.vectors)

    def __sizeof__(self):
        """Includes its own buffers, but not the frames received in place."""
        cdef Py_ssize_t nbytes = self.vector_capacity * sizeof(iovec)
        if self.staging is not None:
            nbytes += self.staging.nbytes
        return object.__sizeof__(self) + nbytes

    cdef char *room(self, Py_ssize_t *nbytes) except NULL:
        """The address for the next bytes, and how many fit there: at least one."""
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
        """`nbytes` were written to `room`."""
        cdef iovec *vector
        if self.missing_bytes == 0:
            self.end += nbytes
            # Adaptive read size: a full read means many small messages, so read 128 KiB next.
            # Otherwise read 16 KiB, so that most of a large message is received in place.
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
        """Remove and return the first staged bytes."""
        taken = PyBytes_FromStringAndSize(self.staging.data + self.start, nbytes)
        self.start += nbytes
        return taken

    cdef void release_staging(self) noexcept:
        """Release the staging buffer if it is empty: an idle comm needs none."""
        global spare_staging
        if self.start != self.end or self.staging is None:
            return
        if spare_staging is None and self.staging.nbytes == STAGING_BYTES:
            spare_staging = self.staging
            count_use(spare_staging, -1)
        self.staging = None

    cdef void filled(self) noexcept:
        """The vectors are filled, or abandoned: reset them."""
        global huge_page_user_count
        self.missing_bytes = 0
        huge_page_user_count -= self.uses_huge_pages
        self.uses_huge_pages = False
        if self.vector_capacity > KEPT_VECTOR_COUNT:
            free(self.vectors)
            self.vectors = NULL
            self.vector_capacity = 0
            self.begin_vectors()

    cdef bint _may_use_huge_pages(self) noexcept:
        """Whether this comm may receive into huge pages; if so, it counts until it is filled."""
        global huge_page_user_count
        if not self.uses_huge_pages and huge_page_user_count < HUGE_PAGE_USER_LIMIT:
            self.uses_huge_pages = True
            huge_page_user_count += 1
        return self.uses_huge_pages

    cdef void begin_vectors(self) noexcept:
        self.vector_count = self.vector_index = 0

    cdef give(self, char *data, Py_ssize_t nbytes):
        """Fill a buffer from the staged bytes; a vector receives the rest."""
        cdef Py_ssize_t staged = min(nbytes, self.end - self.start)
        if nbytes >= HUGE_BYTES and not self._may_use_huge_pages():
            prefer_small_pages(data)
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
        """Make room for more staged bytes: move them to the front, or to a larger buffer."""
        cdef Py_ssize_t staged = self.end - self.start
        cdef Buffer old = self.staging
        cdef Buffer grown = old
        if staged == old.nbytes:
            # In proportion to the bytes that have arrived, not to those that the peer claims.
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
