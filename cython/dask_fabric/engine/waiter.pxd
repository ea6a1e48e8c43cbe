"""An awaitable for the next message, in place of an asyncio future."""

cdef class Waiter:
    cdef object loop
    cdef object message             # until the task takes it: the only reference to its frames
    cdef object error
    cdef object callback
    cdef object context
    cdef bint is_done
    cdef public bint _asyncio_future_blocking

    cdef put(self, message)
    cdef resume(self)
    cdef _wake(self)
