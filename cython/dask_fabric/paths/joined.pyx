"""Connections that have joined a comm, to carry its large frames beside the stream.

A path may need further connections to the same peer. Each is dialled and accepted like a comm, with
the same handshake. Then it leaves its channel (`dask_fabric.engine.detach`), and the path moves
bytes through it by jobs of native threads. This is what a path sees of it.
"""

cimport cython

from dask_fabric.jobs.completions cimport Job
from dask_fabric.linux cimport iovec
from dask_fabric.paths.stream cimport Direction


@cython.auto_pickle(False)
cdef class JoinedSocket:
    """A connection without protocol: bytes in order, in both directions.

    Attributes
    ----------
    is_encrypted : bool
        Whether it is inside TLS.
    """

    cdef Job new_job(self, Direction direction, iovec *vectors, size_t vector_count):
        """Make a job that moves these bytes; one at a time in each direction.

        The vectors are copied when it begins. Their memory must live until its end.
        """
        raise NotImplementedError

    cdef size_t moved_bytes(self, Job job) noexcept:
        """The bytes that a job has moved so far; 0 once it has ended."""
        return 0

    cdef Py_ssize_t read_ready(self, char *room, Py_ssize_t nbytes) except -1:
        """Read bytes that have left the socket already, which no job would find; 0 for none."""
        return 0

    cdef bint is_lost(self) noexcept:
        """Whether the peer has closed it, or it broke."""
        return False

    def end_sending(self):
        """Tell the peer that this side sends nothing more."""
        raise NotImplementedError

    def close(self):
        """Close it at once; no job may use it."""
        raise NotImplementedError

    def forked(self):
        """In a forked child: close the copy of the socket."""
        raise NotImplementedError
