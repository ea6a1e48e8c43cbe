"""Watches the process of a peer while its frames are requested.

The stream may not show its end: another process may hold the same socket.
"""

cimport cython
from posix.unistd cimport close


@cython.auto_pickle(False)
@cython.final
cdef class SenderWatch:
    """A descriptor of a process, watched by an event loop.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    """

    def __init__(self, loop):
        self.loop = loop
        self.fd = -1

    cdef begin(self, int fd, on_ended):
        """Call `on_ended` once the descriptor, owned from now on, is readable; -1 for none."""
        self.end()
        if fd >= 0:
            self.fd = fd
            self.loop.add_reader(fd, on_ended)

    cdef end(self):
        """Watch no longer."""
        if self.fd >= 0:
            if not self.loop.is_closed():
                self.loop.remove_reader(self.fd)
            close(self.fd)
            self.fd = -1
