"""A link: one connected socket in one event loop, and its end."""

import copy
import os
import weakref
from asyncio.selector_events import BaseSelectorEventLoop
from socket import IPPROTO_TCP, TCP_INFO

cimport cython

from dask_fabric.clock cimport now_ns
from dask_fabric.engine.figures cimport Figures
from dask_fabric.engine.port cimport Port
from dask_fabric.linux cimport POLLERR, POLLHUP, POLLRDHUP, poll, pollfd
from dask_fabric.wire.records cimport STREAM

from dask_fabric.engine.port import port_of
from dask_fabric.errors import ChannelClosedError, ForkedError, ProtocolError

cdef extern from "Python.h":
    bint Py_IsInitialized()     # not so any more while modules are torn down

cdef enum:
    TCP_INFO_BYTES = 256        # more than any kernel gives

_links = weakref.WeakSet()


def _after_fork_in_child():
    """Close the child's copies of the sockets, so that peers see the parent's end and not ours."""
    for link in list(_links):
        (<Link> link)._forked()
    _links.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


@cython.auto_pickle(False)
cdef class Link:
    """The base of every channel: watching the socket, failing, closing.

    Attributes
    ----------
    closed : bool
        Whether either side has closed, noticed without a read.
    error : Exception or None
        What ended the link, where it was not a request of this side.
    local_sockname, peer_sockname : tuple
        As `socket.getsockname` and `socket.getpeername` gave them.
    name_ends : callable or None
        Gives, for the link, its local and its peer's address as users see them.
    on_closed : callable or None
        Called once, with the link, when it is closed; it must not keep the link's owner alive.
    on_active : callable or None
        Called once, before the link moves anything, and is None then until it is set again.
    """

    def __cinit__(self, *args, **kwargs):
        self.fd = -1
        self.closed = True      # until `_begin`: what is not whole is not torn down either

    def __init__(self, loop, sock):
        self.loop = loop
        self.is_asyncio = isinstance(loop, BaseSelectorEventLoop)
        self.sock = sock
        self.fd = sock.fileno()
        self.local_sockname = sock.getsockname()
        self.peer_sockname = sock.getpeername()
        self.stream = Figures()
        self.others = {}

    cdef Figures figures_of(self, int path):
        """What is counted of one path, which from now on is among those that are told."""
        if path == STREAM:
            return self.stream
        figures = self.others.get(path)
        if figures is None:
            figures = self.others[path] = Figures()
        return figures

    def addresses(self):
        """The local and the peer's address as users see them, also in logs.

        Without `name_ends` they are the names of the sockets.
        """
        if self.name_ends is None:
            return self.local_sockname, self.peer_sockname
        return self.name_ends(self)

    def tcp_info(self):
        """What the kernel says of the connection (``struct tcp_info``); empty if it is no TCP."""
        if self.closed or type(self.local_sockname) is not tuple:
            return b""
        return self.sock.getsockopt(IPPROTO_TCP, TCP_INFO, TCP_INFO_BYTES)

    cdef _begin(self):
        """Everything is in place; whoever opens the link starts to watch the socket."""
        port = <Port> port_of(self.loop)
        port.open()
        self.port = port
        self.closed = False
        _links.add(self)

    def __del__(self):
        if Py_IsInitialized():
            self._fail(None)
        elif not self.closed:
            # The interpreter is being taken apart, and the loop with it; the memory of jobs too.
            self._stop_jobs()

    def abort(self, error=None):
        """Close at once; what is queued is lost, and a pending `receive` fails.

        Parameters
        ----------
        error : BaseException, optional
            Why, for the next who uses the channel.
        """
        self._fail(error)

    cdef _fail(self, error):
        """Close, and tell whoever waits; `error` is None where this side wanted it."""
        if self.closed:
            return
        try:
            self._send_last(getattr(error, "reply", b""))
        finally:
            self.closed = True
            self.error = None if error is None else _without_traceback(error)
            try:
                self._release()
                self._tell_owner()
            finally:
                self._settle()          # whatever failed above: a pending `receive` ends

    cdef _tell_owner(self):
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed(self)

    cdef _release(self):
        """Stop the jobs, then stop to watch the socket, then close it: nothing uses it then."""
        self._stop_jobs()
        if not self.loop.is_closed():
            self._watch_readable(False)
            self._watch_writable(False)
        port, self.port = self.port, None
        (<Port> port).close()
        self.fd = -1
        if not self.is_socket_in_use:
            self.sock.close()

    def _forked(self):
        """In a forked child: drop the socket, and leave the loop, which is the parent's, alone."""
        self.closed = True
        self.error = ForkedError(
            "this comm belongs to the parent of this forked process; open a new one here, or start "
            "processes by spawn or forkserver instead of fork"
        )
        self.fd = -1
        self.sock.close()

    cdef _become_active(self):
        on_active, self.on_active = self.on_active, None
        on_active()

    cdef _check_open(self):
        if self.closed:
            raise self._why_closed()

    def check_open(self):
        """Raise why the channel is closed, if it is.

        Raises
        ------
        ChannelClosedError, ProtocolError
        """
        self._check_open()

    cdef bint _peer_has_gone(self) noexcept:
        """Whether the peer has closed, however much of what it sent is still unread."""
        cdef pollfd state = pollfd(self.fd, POLLRDHUP, 0)
        return poll(&state, 1, 0) > 0 and state.revents & (POLLRDHUP | POLLHUP | POLLERR)

    def ended(self):
        """Whether either side has closed, also where much of what the peer sent is unread."""
        return self.closed or (not self.watching_readable and self._peer_has_gone())

    cdef _why_closed(self):
        """A new exception: one that is raised again and again collects tracebacks."""
        if self.error is None:
            return ChannelClosedError("the comm was closed on this side")
        if isinstance(self.error, (ChannelClosedError, ProtocolError)):
            return type(self.error)(str(self.error))
        closed = ChannelClosedError(f"{type(self.error).__name__}: {self.error}")
        closed.__cause__ = self.error
        return closed

    cdef _watch_readable(self, bint watch):
        if watch and not self.watching_readable:
            self.loop.add_reader(self.fd, self._on_readable)
        elif self.watching_readable and not watch:
            self.loop.remove_reader(self.fd)
        self.watching_readable = watch

    cdef _watch_on(self):
        """Watch on for what may be left to read: libuv forgets a socket once it has an error."""
        cdef pollfd state = pollfd(self.fd, 0, 0)
        if self.watching_readable and not self.is_asyncio and poll(&state, 1, 0) > 0:
            self._watch_readable(False)
            self._watch_readable(True)

    cdef _watch_writable(self, bint watch):
        if watch and not self.watching_writable:
            self.loop.add_writer(self.fd, self._on_writable)
            self.blocked_ns = now_ns()
        elif self.watching_writable and not watch:
            self.loop.remove_writer(self.fd)
            self.stream.counts.peer_ns += now_ns() - self.blocked_ns
        self.watching_writable = watch

    cdef _send_last(self, bytes reply):
        pass

    cdef _stop_jobs(self):
        pass

    cdef _settle(self):
        pass


def _without_traceback(error):
    """Copy an exception: its traceback would keep whole frames, and what they received, alive.

    The exception itself keeps it: it may be on its way to the caller.
    """
    try:
        return copy.copy(error)
    except Exception:       # not every exception of others can be copied
        return ChannelClosedError(f"{type(error).__name__}: {error}")
