"""Connections that have joined a comm, to carry its large frames beside the stream."""

from dask_fabric.jobs.completions cimport Job
from dask_fabric.linux cimport iovec
from dask_fabric.paths.stream cimport Direction

cdef class JoinedSocket:
    cdef readonly bint is_encrypted

    cdef Job new_job(self, Direction direction, iovec *vectors, size_t vector_count)
    cdef size_t moved_bytes(self, Job job) noexcept
    cdef Py_ssize_t read_ready(self, char *room, Py_ssize_t nbytes) except -1
    cdef bint is_lost(self) noexcept
