"""Take a connection out of its channel, for a path that needs more than one to the same peer."""

import socket

cimport cython
from libc.string cimport memcpy

from dask_fabric.engine.channel cimport Channel
from dask_fabric.engine.socket_jobs cimport SocketJob, new_socket_job
from dask_fabric.engine.transport cimport Transport
from dask_fabric.jobs.completions cimport CompletionQueue, Job
from dask_fabric.linux cimport POLLERR, POLLHUP, POLLRDHUP, iovec, poll, pollfd
from dask_fabric.paths.joined cimport JoinedSocket
from dask_fabric.paths.stream cimport Direction, reset
from dask_fabric.wire.send_buffer cimport PY_SSIZE_T_MAX
from dask_fabric.wire.states cimport CLOSED_HERE

from dask_fabric.errors import ChannelClosedError, UnavailableError


@cython.auto_pickle(False)
@cython.final
cdef class DetachedSocket(JoinedSocket):
    """The transport of a channel that has given it up."""

    cdef Transport transport
    cdef bytes early                # what the channel has read of the bytes after the hello
    cdef Py_ssize_t early_begin

    cdef Job new_job(self, Direction direction, iovec *vectors, size_t vector_count):
        return new_socket_job(
            self.transport.sock, self.transport.fd, self.transport.tls, direction, vectors,
            vector_count,
        )

    cdef size_t moved_bytes(self, Job job) noexcept:
        return (<SocketJob> job).moved_bytes()

    cdef Py_ssize_t read_ready(self, char *room, Py_ssize_t nbytes) except -1:
        cdef Py_ssize_t early_bytes = len(self.early) - self.early_begin
        if early_bytes:
            nbytes = min(nbytes, early_bytes)
            memcpy(room, <const char *> self.early + self.early_begin, nbytes)
            self.early_begin += nbytes
            return nbytes
        if not self.transport.has_pending():
            return 0
        nbytes = self.transport.read(room, nbytes)
        if nbytes == 0:
            raise ConnectionResetError("the peer has closed the connection")
        return max(<Py_ssize_t> 0, nbytes)

    cdef bint is_lost(self) noexcept:
        cdef pollfd state = pollfd(self.transport.fd, POLLRDHUP, 0)
        return poll(&state, 1, 0) > 0 and state.revents & (POLLRDHUP | POLLHUP | POLLERR)

    @property
    def sock(self):
        """The socket, to ask the kernel about it."""
        return self.transport.sock

    def end_sending(self):
        try:
            # Not by OpenSSL: the peer looks at the socket only.
            socket.socket.shutdown(self.transport.sock, socket.SHUT_WR)
        except OSError:                 # the peer was faster
            pass

    def close(self):
        if self.transport.fd >= 0:
            # A reset: the peer sees it at once, and whatever is queued would only be discarded.
            reset(self.transport.fd)
            self.transport.fd = -1
            self.transport.sock.close()

    def forked(self):
        self.transport.forked()


def detach(Channel channel not None):
    """Take the connection out of a channel that has just opened. The channel is closed by that.

    Parameters
    ----------
    channel : Channel
        After `open`, and before any message.

    Returns
    -------
    dask_fabric.paths.joined.JoinedSocket
        The hello of this side has been sent.

    Raises
    ------
    ChannelClosedError
        The channel is closed already, or its hello does not fit into the socket.
    UnavailableError
        Native threads cannot use this connection, because they cannot call Python's OpenSSL.
    """
    cdef DetachedSocket detached = DetachedSocket.__new__(DetachedSocket)
    channel._check_open()
    if channel.transport.bulk_bytes == PY_SSIZE_T_MAX:
        raise UnavailableError("native threads cannot use the OpenSSL of this Python")
    channel.transport.write(channel.core.outgoing)
    if channel.core.outgoing.pending_bytes:
        raise ChannelClosedError("the peer does not take the hello")
    detached.transport = channel.transport
    detached.is_encrypted = channel.transport.cipher is not None
    detached.early = channel.incoming.take_staged(channel.incoming.staged_bytes())
    channel.incoming.release_staging()
    channel._watch_readable(False)
    channel._watch_writable(False)
    channel.closed = True
    queue, channel.queue = channel.queue, None
    (<CompletionQueue> queue).close()
    channel.core.end(CLOSED_HERE)
    channel._notify_owner()
    return detached
