"""An endpoint of the `ucx` path in Python: for tests, benchmarks and `doctor`."""

import errno as errno_names
import os
import select
import time

from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

from dask_fabric.errors import UnavailableError
from dask_fabric.paths.ucx import worker as ucx_worker

from dask_fabric.linux cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, close as close_fd, eventfd, eventfd_read, eventfd_write,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock,
)
from dask_fabric.paths.ucx cimport core as ucx
from dask_fabric.paths.ucx.libucp cimport HOST

cdef struct Results:
    pthread_mutex_t mutex
    int event_fd
    Result *first
    Result *last

cdef struct Result:
    Results *results
    Result *next
    uint64_t name
    int error
    size_t moved_bytes
    Py_buffer buffer


cdef void _ended(
    void *context, uint64_t name, int progress, int error, size_t moved_bytes
) noexcept nogil:
    cdef Result *result = <Result *> context
    cdef Results *results = result.results
    result.name = name
    result.error = error
    result.moved_bytes = moved_bytes
    pthread_mutex_lock(&results.mutex)
    if results.last == NULL:
        results.first = result
    else:
        results.last.next = result
    results.last = result
    eventfd_write(results.event_fd, 1)
    pthread_mutex_unlock(&results.mutex)


cdef class UCXEndpoint:
    """One end of a connection for frames. Use it in one thread at a time.

    Parameters
    ----------
    address : bytes
        Of the peer's worker.
    own_token, peer_token : int
        64 random bits each; each side makes its own and announces it to the other.
    """

    cdef Results *results
    cdef readonly uint64_t own_token
    cdef dict pending               # name -> its Result, as a number
    cdef dict ended                 # name -> errno and moved bytes

    def __cinit__(self, bytes address, uint64_t own_token, uint64_t peer_token):
        cdef const char *data = address
        cdef size_t nbytes = len(address)
        cdef bint is_open
        ucx_worker.address()        # raises if UCX does not run here
        self.own_token = own_token
        self.pending, self.ended = {}, {}
        self.results = <Results *> calloc(1, sizeof(Results))
        if self.results == NULL:
            raise MemoryError()
        pthread_mutex_init(&self.results.mutex, NULL)
        self.results.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.results.event_fd < 0:
            raise OSError(errno, os.strerror(errno))
        with nogil:
            is_open = ucx.open_endpoint(data, nbytes, own_token, peer_token)
        if not is_open:
            raise UnavailableError("UCX cannot open the endpoint: bad address, or token in use")

    def __dealloc__(self):
        if self.results != NULL:
            self.close()
            if self.results.event_fd >= 0:
                close_fd(self.results.event_fd)
            pthread_mutex_destroy(&self.results.mutex)
            free(self.results)

    def fileno(self):
        """Return a file descriptor that is readable once an operation has ended."""
        return self.results.event_fd

    @property
    def is_wired(self):
        cdef bint found
        with nogil:
            found = ucx.is_wired(self.own_token)
        return found

    @property
    def error(self):
        """The errno of a broken endpoint, or 0."""
        cdef int found
        with nogil:
            found = ucx.endpoint_error(self.own_token)
        return found

    def offer(self, data, uint64_t sequence=0, uint32_t index=0, int kind=HOST):
        """Send a frame.

        Parameters
        ----------
        data : bytes-like
        sequence, index : int
            The peer posts its receive with the same numbers.
        kind : int
            The kind of memory, in UCX's numbering.

        Returns
        -------
        int
            The operation's name, for :meth:`wait`.
        """
        cdef Result *result = self._new_result(data, PyBUF_SIMPLE)
        cdef uint64_t name
        with nogil:
            name = ucx.offer(
                self.own_token, sequence, index, result.buffer.buf, result.buffer.len, kind,
                _ended, result,
            )
        return self._begun(name, result)

    def post(self, memory, uint64_t sequence=0, uint32_t index=0, int kind=HOST):
        """Receive a frame into *memory*, of exactly that length; otherwise as :meth:`offer`."""
        cdef Result *result = self._new_result(memory, PyBUF_SIMPLE | PyBUF_WRITABLE)
        cdef uint64_t name
        with nogil:
            name = ucx.post(
                self.own_token, sequence, index, result.buffer.buf, result.buffer.len, kind,
                _ended, result,
            )
        return self._begun(name, result)

    def wait(self, name, timeout_seconds=30.0):
        """Wait for the end of an operation.

        Returns
        -------
        int
            The number of bytes moved.

        Raises
        ------
        TimeoutError
            It has not ended in time, and continues.
        OSError
            It has failed.
        """
        deadline = time.monotonic() + timeout_seconds
        self._collect()
        while name not in self.ended:
            if name not in self.pending:
                raise KeyError(name)
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self], [], [], left)[0]:
                raise TimeoutError(f"no end within {timeout_seconds} s")
            self._collect()
        error, moved_bytes = self.ended.pop(name)
        if error:
            raise OSError(error, f"{errno_names.errorcode.get(error, error)}: {os.strerror(error)}")
        return moved_bytes

    def cancel(self, uint64_t name):
        """Cancel an operation; False if it has ended already."""
        cdef ucx.Cancelled outcome
        with nogil:
            outcome = ucx.cancel(name, ucx.STUCK_NS)
        if outcome == ucx.CANCELLED:
            self._forget(self.pending.pop(name))
        elif outcome == ucx.UNENDED:
            self.pending.pop(name)      # leak its memory: UCX may still use it
        return outcome != ucx.WAS_OVER

    def fail(self):
        """Fail all operations, and break the connection to the peer."""
        with nogil:
            ucx.fail(self.own_token)

    def revive(self):
        """Let a broken endpoint and its counterpart begin anew; False if it is not possible now."""
        cdef bint is_begun
        with nogil:
            is_begun = ucx.revive_endpoint(self.own_token)
        return is_begun

    def break_again(self):
        """Give up to revive it."""
        with nogil:
            ucx.break_again(self.own_token)

    def close(self):
        """Cancel all operations."""
        cdef size_t abandoned_count
        with nogil:
            ucx.close_endpoint(self.own_token, ucx.STUCK_NS)
            abandoned_count = ucx.abandoned_count()
        if ucx_worker.is_running():     # in a forked child the memory is the parent's
            self._collect()
            if abandoned_count == 0:
                for result in self.pending.values():
                    self._forget(result)
        self.pending.clear()

    cdef Result *_new_result(self, memory, int flags) except NULL:
        ucx_worker.address()        # raises in a forked child
        cdef Result *result = <Result *> calloc(1, sizeof(Result))
        if result == NULL:
            raise MemoryError()
        result.results = self.results
        try:
            PyObject_GetBuffer(memory, &result.buffer, flags)
        except BaseException:
            free(result)
            raise
        return result

    cdef object _begun(self, uint64_t name, Result *result):
        if name == 0:
            self._forget(<uintptr_t> result)
            raise UnavailableError("the endpoint is closed")
        self.pending[name] = <uintptr_t> result
        return name

    cdef _forget(self, uintptr_t result):
        PyBuffer_Release(&(<Result *> result).buffer)
        free(<Result *> result)

    cdef _collect(self):
        cdef uint64_t ignored = 0
        cdef Result *result
        cdef Result *following
        eventfd_read(self.results.event_fd, &ignored)
        pthread_mutex_lock(&self.results.mutex)
        result = self.results.first
        self.results.first = self.results.last = NULL
        pthread_mutex_unlock(&self.results.mutex)
        while result != NULL:
            following = result.next
            self.ended[result.name] = (result.error, result.moved_bytes)
            self.pending.pop(result.name, None)
            self._forget(<uintptr_t> result)
            result = following
