"""What a reader waits for, in the place of an asyncio future."""

cdef class Waiter:
    cdef object loop
    cdef object message             # until it is taken: nobody else keeps its frames alive
    cdef object error
    cdef object callback
    cdef object context
    cdef bint is_done
    cdef public bint _asyncio_future_blocking

    cdef put(self, message)
    cdef resume(self)
    cdef _wake(self)
