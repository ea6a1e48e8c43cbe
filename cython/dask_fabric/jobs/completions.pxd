"""Jobs of native threads: the delivery of their completions, cancellation, and quarantine."""

from libc.stdint cimport int64_t, uint64_t

from dask_fabric.jobs.mailbox cimport Mailbox

cdef enum:
    HELD_NS = 1_000_000_000     # memory is kept for a receiver that has not seen the end

cdef class CompletionQueue

cdef class Job:
    cdef uint64_t name          # identifies it to its native threads; 0 before it begins
    cdef uint64_t tag           # identifies it to its completion queue
    cdef CompletionQueue queue  # None once it has completed or was cancelled
    cdef object owner           # weak reference to the object whose `_job_ended` is called
    cdef object subject         # identifies it to the owner
    cdef object kept            # stays alive until it has completed or was cancelled
    cdef int64_t waited_ns      # after its end: how long the completion waited for the loop,
    cdef int64_t busy_ns        # and how long the job moved bytes; 0 if unknown
    cdef int64_t held_until_ns  # in quarantine, at least until then
    cdef Py_ssize_t held_bytes

    cdef begin(self, CompletionQueue queue, object owner)
    cdef bint cancel(self, object memory=*, object free=*) except -1
    cdef void hold(self, Py_ssize_t nbytes) noexcept

    # implemented by each kind of job
    cdef uint64_t _start(self, Mailbox *mailbox) except 0
    cdef bint _end(self) noexcept
    cdef bint _is_in_use(self) except -1

cdef class CompletionQueue:
    cdef object loop                # weak reference
    cdef Mailbox *mailbox           # NULL while the queue has no users
    cdef dict jobs                  # tag -> running job
    cdef Py_ssize_t user_count

    cdef open(self)
    cdef close(self)
    cdef expect(self, Job job)
    cdef bint forget(self, Job job) except -1

cdef hold(object memory, Py_ssize_t nbytes, object free)
cpdef bint reap() except -1
