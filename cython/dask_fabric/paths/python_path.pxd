"""Paths that are written in Python."""

from dask_fabric.jobs.completions cimport Job
from dask_fabric.wire.path cimport Path

cdef class ThreadJob(Job):
    cdef object work                # called in a thread
    cdef object loop
    cdef object future
    cdef list ended                 # not empty once the thread does not use the memory any more

cdef class PythonPath(Path):
    cdef readonly object loop
