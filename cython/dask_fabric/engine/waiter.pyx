"""What a reader waits for, in the place of an asyncio future.

A task that awaits a future goes on in the loop's next round, after another look at all sockets. One
that awaits a waiter goes on at once, where the message is found: a tenth of a small message's way.
It is what `asyncio.isfuture` takes for a future, and is awaited once, by one task.
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
        """Give the message; the caller forgets it, and calls `go_on`."""
        if not self.is_done:
            self.is_done = True
            self.message = message

    cdef resume(self):
        """Let the task go on: here, where no other one runs, as in a callback of the loop."""
        if self.callback is not None and current_task(self.loop) is None:
            callback, self.callback = self.callback, None
            self.context.run(callback, self)
        else:
            self._wake()

    def set_result(self, message):
        """Give the message, and go on."""
        self.put(message)
        self.resume()

    def set_exception(self, error):
        """Give an exception, which the task sees soon."""
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
        """As `asyncio.Future`, like all that follows."""
        return self.loop

    def done(self):
        return self.is_done

    def cancelled(self):
        return isinstance(self.error, asyncio.CancelledError)

    def exception(self):
        if not self.is_done:
            raise asyncio.InvalidStateError("no message has come yet")
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
            raise RuntimeError("one task at a time awaits a message")
        self.callback = callback
        self.context = copy_context() if context is None else context
        if self.is_done:
            self._wake()

    def remove_done_callback(self, callback):
        if self.callback is None or self.callback != callback:
            return 0
        self.callback = None
        return 1
