"""The `stream` path: frames move on the control stream, from and to their final memory."""

import os

from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport memset

from dask_fabric.atomics cimport add_relaxed
from dask_fabric.linux cimport (
    AF_UNSPEC, IPPROTO_TCP, MSG_DONTWAIT, MSG_NOSIGNAL, SO_RCVLOWAT, SOL_SOCKET, TCP_CORK, connect,
    iovec, msghdr, recv, recvmsg, send, sendmsg, setsockopt, sockaddr,
)
from dask_fabric.memory.files cimport make_huge_pages
from dask_fabric.paths import kernel
from dask_fabric.paths.openssl cimport (
    RECORD_BYTES, TLSSession, session_has_pending, session_read, session_write,
)


def is_low_water_sound(release):
    """Whether a kernel's SO_RCVLOWAT is reliable.

    Before 5.12 a reader may never be woken, in the middle of a message: small packets fill the
    receive buffer first (fixed in 5.7 by 24adbc1676af), or the kernel's memory for TCP is used up
    (fixed by "tcp: fix SO_RCVLOWAT related hangs under mem pressure").

    Parameters
    ----------
    release : str
        As from `os.uname`, such as ``5.14.0-503.el9.x86_64``. False if it is not a version.
    """
    return kernel.version(release) >= (5, 12)


cdef bint has_sound_low_water = is_low_water_sound(os.uname().release)

cdef enum:
    VECTORS_PER_CALL = 512      # the kernel refuses more than IOV_MAX, 1024
    # More than OpenSSL can hold of bytes that are missing; only the others arrive on the socket.
    HELD_BYTES = 4 * RECORD_BYTES
    # Under TLS this side decrypts one part while the peer encrypts the next.
    LOW_WATER_PART = 4


cdef SocketTransfer new_transfer(
    int fd, TLSSession *tls, Direction direction, iovec *vectors, size_t vector_count
) noexcept nogil:
    """Make a transfer of all the vectors' bytes, none of them moved yet."""
    cdef size_t total_bytes = 0
    cdef size_t index
    for index in range(vector_count):
        total_bytes += vectors[index].iov_len
    return SocketTransfer(fd, tls, direction, vectors, vector_count, 0, 0, 0, total_bytes, 0)


cdef Progress advance(SocketTransfer *transfer, size_t budget_bytes) noexcept nogil:
    """Move bytes until all have moved, the socket blocks, or `budget_bytes` are used up."""
    cdef bint corked = transfer.tls != NULL and transfer.direction == SEND
    cdef Progress progress
    # Each record is one send, but a packet may hold several: see `cork`.
    if corked:
        cork(transfer.fd, True)
    progress = _advance(transfer, budget_bytes)
    if corked:
        cork(transfer.fd, False)
    return progress


cdef Progress _advance(SocketTransfer *transfer, size_t budget_bytes) noexcept nogil:
    cdef size_t goal_bytes = transfer.moved_bytes + budget_bytes
    cdef ssize_t moved
    while transfer.vector_index < transfer.vector_count:
        if transfer.moved_bytes >= goal_bytes and not _has_pending(transfer):
            return UNFINISHED
        if transfer.vectors[transfer.vector_index].iov_len == 0:
            _consume(transfer, 0)
            continue            # `recv` of nothing looks like the end, and OpenSSL refuses it
        if transfer.direction == RECEIVE:
            _prepare_memory(transfer, budget_bytes)
        moved = _call(transfer) if transfer.tls == NULL else _call_tls(transfer)
        if moved > 0:
            _consume(transfer, <size_t> moved)
        elif moved == 0:
            if transfer.direction == RECEIVE:
                return END_OF_STREAM
            _consume(transfer, 0)
        elif errno == EAGAIN:
            return BLOCKED
        elif errno != EINTR:
            transfer.error = errno
            return FAILED
    return COMPLETE


cdef bint _has_pending(SocketTransfer *transfer) noexcept nogil:
    """Whether bytes have arrived that do not make the socket readable."""
    return (
        transfer.tls != NULL and transfer.direction == RECEIVE
        and session_has_pending(transfer.tls)
    )


cdef void _prepare_memory(SocketTransfer *transfer, size_t most_bytes) noexcept nogil:
    """No further ahead than a slice: what a peer claims, and does not send, becomes resident."""
    cdef iovec *vector = transfer.vectors + transfer.vector_index
    make_huge_pages(<const char *> vector.iov_base, min(vector.iov_len, most_bytes))


cdef void raise_low_water(SocketTransfer *transfer) noexcept nogil:
    """Make the socket readable only when much, or everything that is missing, has arrived.

    Fewer and larger copies: on loopback a sixth less CPU time and a sixth more bandwidth at 100 MB
    (512 KiB against none; benchmarks/comm.py). Sockets without the option are readable at once.
    """
    cdef size_t missing_bytes = transfer.total_bytes - transfer.moved_bytes
    if transfer.tls != NULL:
        missing_bytes = encrypted_low_water(missing_bytes)
    _set_low_water(transfer, <int> min(missing_bytes, <size_t> LOW_WATER_BYTES))


cdef size_t encrypted_low_water(size_t missing_bytes) noexcept nogil:
    """The bytes to wait for on the socket while these are missing of a message under TLS.

    What OpenSSL holds causes no wake-up.
    """
    return 1 if missing_bytes <= HELD_BYTES else max(
        <size_t> 1, (missing_bytes - HELD_BYTES) // LOW_WATER_PART
    )


cdef void reset_low_water(SocketTransfer *transfer) noexcept nogil:
    """Make the socket readable by any byte again."""
    if transfer.low_water_bytes:
        _set_low_water(transfer, 1)


cdef void _set_low_water(SocketTransfer *transfer, int nbytes) noexcept nogil:
    if transfer.direction == RECEIVE and nbytes != transfer.low_water_bytes:
        set_low_water(transfer.fd, nbytes)
        transfer.low_water_bytes = nbytes


cdef void set_low_water(int fd, int nbytes) noexcept nogil:
    """Set the socket's SO_RCVLOWAT, if the kernel's is reliable."""
    if has_sound_low_water:
        setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &nbytes, sizeof(nbytes))


cdef void reset(int fd) noexcept nogil:
    """Reset a TCP connection at once, whichever processes hold the socket. No effect on others."""
    cdef sockaddr nowhere
    memset(&nowhere, 0, sizeof(nowhere))
    nowhere.sa_family = AF_UNSPEC
    connect(fd, &nowhere, sizeof(nowhere))


cdef void cork(int fd, bint corked) noexcept nogil:
    """Hold back TCP packets until they are full, or until uncorked."""
    cdef int value = corked
    setsockopt(fd, IPPROTO_TCP, TCP_CORK, &value, sizeof(value))


cdef ssize_t _call(SocketTransfer *transfer) noexcept nogil:
    cdef iovec *vector = transfer.vectors + transfer.vector_index
    cdef size_t count = transfer.vector_count - transfer.vector_index
    cdef msghdr message
    if count == 1:
        if transfer.direction == RECEIVE:
            return recv(transfer.fd, vector.iov_base, vector.iov_len, MSG_DONTWAIT)
        return send(transfer.fd, vector.iov_base, vector.iov_len, MSG_DONTWAIT | MSG_NOSIGNAL)
    memset(&message, 0, sizeof(message))
    message.msg_iov = vector
    message.msg_iovlen = min(count, <size_t> VECTORS_PER_CALL)
    if transfer.direction == RECEIVE:
        return recvmsg(transfer.fd, &message, MSG_DONTWAIT)
    return sendmsg(transfer.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)


cdef ssize_t _call_tls(SocketTransfer *transfer) noexcept nogil:
    cdef iovec *vector = transfer.vectors + transfer.vector_index
    if transfer.direction == RECEIVE:
        return session_read(transfer.tls, vector.iov_base, vector.iov_len)
    return session_write(transfer.tls, vector.iov_base, vector.iov_len)


cdef void _consume(SocketTransfer *transfer, size_t moved_bytes) noexcept nogil:
    """Advance the vectors by `moved_bytes`, past empty ones too."""
    cdef iovec *vector
    add_relaxed(<Py_ssize_t *> &transfer.moved_bytes, moved_bytes)  # other threads read it
    while transfer.vector_index < transfer.vector_count:
        vector = transfer.vectors + transfer.vector_index
        if moved_bytes < vector.iov_len:
            vector.iov_base = <char *> vector.iov_base + moved_bytes
            vector.iov_len -= moved_bytes
            return
        moved_bytes -= vector.iov_len
        transfer.vector_index += 1
