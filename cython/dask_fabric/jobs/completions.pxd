"""Jobs of native threads: how an event loop learns of their ends, and how they are cancelled."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.jobs.mailbox cimport Mailbox

cdef class CompletionQueue

cdef class Job:
    cdef uint64_t name          # as its native threads know it; 0 before it begins
    cdef uint64_t tag           # as its completion queue knows it
    cdef CompletionQueue queue  # None when nothing is awaited any more
    cdef object owner           # weak reference, to whom `_job_ended` belongs
    cdef object subject         # what the owner knows it by
    cdef int64_t waited_ns      # when it has ended: how long it waited for the loop,
    cdef int64_t busy_ns        # and how long it moved bytes; 0 where nobody knows

    cdef begin(self, CompletionQueue queue, object owner)
    cdef bint cancel(self, object memory=*, object free=*) except -1

    # what each kind of job does by itself
    cdef uint64_t _start(self, Mailbox *mailbox) except 0
    cdef bint _end(self) noexcept
    cdef bint _is_in_use(self) except -1

cdef class CompletionQueue:
    cdef object loop                # weak reference
    cdef Mailbox *mailbox           # NULL while nobody uses the queue
    cdef dict jobs                  # tag -> the job whose end is awaited
    cdef Py_ssize_t user_count
    cdef bint is_reap_scheduled

    cdef open(self)
    cdef close(self)
    cdef expect(self, Job job)
    cdef bint forget(self, Job job) except -1
    cdef reap_later(self)

cpdef bint reap() except -1
