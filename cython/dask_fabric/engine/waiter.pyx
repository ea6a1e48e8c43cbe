"""An awaitable for the next message, in place of an asyncio future.

A task that awaits a future resumes in the loop's next iteration, after another poll of all sockets.
A task that awaits a `Waiter` resumes at once, inside the callback that found the message: that
saves a tenth of a small message's latency. `asyncio.isfuture` accepts it as a future. It is awaited
once, by one task.
"""

import asyncio
from asyncio import current_task
from contextvars import copy_context

cimport cython


@cython.auto_pickle(False)
@cython.final
cdef class Waiter:
    """The next message of a channel, for the task that awaits it.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    """

    def __init__(self, loop):
        self.loop = loop

    # ------------------------------------------------------------ for the channel

    cdef put(self, message):
        """Set the result without waking the task. The caller drops its reference to the message,
        then calls `resume`."""
        if not self.is_done:
            self.is_done = True
            self.message = message

    cdef resume(self):
        """Resume the task: at once if no other task is running, else in the next iteration."""
        if self.callback is not None and current_task(self.loop) is None:
            callback, self.callback = self.callback, None
            self.context.run(callback, self)
        else:
            self._wake()

    def set_result(self, message):
        """Set the result and resume the task."""
        self.put(message)
        self.resume()

    def set_exception(self, error):
        """Set an exception; the task resumes in the next iteration."""
        if not self.is_done:
            self.is_done = True
            self.error = error
            self._wake()

    cdef _wake(self):
        callback, self.callback = self.callback, None
        if callback is not None:
            self.loop.call_soon(callback, self, context=self.context)

    # ------------------------------------------------------------ for the task

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        if not self.is_done:
            self._asyncio_future_blocking = True
            return self
        message, self.message = self.result(), None
        raise StopIteration(message)

    def get_loop(self):
        """As in `asyncio.Future`, like the methods below."""
        return self.loop

    def done(self):
        return self.is_done

    def cancelled(self):
        return isinstance(self.error, asyncio.CancelledError)

    def exception(self):
        if not self.is_done:
            raise asyncio.InvalidStateError("no message has arrived yet")
        if self.cancelled():
            raise self.error
        return self.error

    def result(self):
        if self.exception() is not None:
            raise self.error
        return self.message

    def cancel(self, msg=None):
        if self.is_done:
            return False
        self.set_exception(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True

    def add_done_callback(self, callback, *, context=None):
        if self.callback is not None:
            raise RuntimeError("only one task at a time may await a message")
        self.callback = callback
        self.context = copy_context() if context is None else context
        if self.is_done:
            self._wake()

    def remove_done_callback(self, callback):
        if self.callback is None or self.callback != callback:
            return 0
        self.callback = None
        return 1
