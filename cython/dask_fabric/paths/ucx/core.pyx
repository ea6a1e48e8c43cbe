"""The `ucx` path: frames as active messages, from the sender's memory into the receiver's.

A frame is one message with a header that names the receiver's endpoint, the message of the comm and
the frame in it. The receiver posts where a frame is to go, before or after it comes. Nothing that
a peer claims is believed: a length other than the posted one fails the receive.
"""

from libc.errno cimport EBADF
from libc.stdint cimport int64_t, uint32_t, uint64_t

from dask_fabric.errors import LibraryError
from dask_fabric.paths.ucx import libucp
from dask_fabric.paths.ucx import worker as ucx_worker

from dask_fabric.linux cimport ECANCELED
from dask_fabric.paths.ucx.libucp cimport HOST, ucp
from dask_fabric.paths.ucx.unexpected cimport take_kept
from dask_fabric.paths.ucx.operations cimport (
    abandon, count_of, end, find_operation, is_reporting, new_operation, put, release, release_all,
    release_ended_of,
)
from dask_fabric.paths.ucx.peers cimport (
    Figures, add_endpoint, any_ready, break_connection, break_endpoint, figures, find_endpoint,
    register, remove_endpoint, back_off, use,
)
from dask_fabric.paths.ucx.receive cimport receive_kept, refused_count, register_frames
from dask_fabric.paths.ucx.send cimport send_frame
from dask_fabric.paths.ucx.state cimport (
    ABANDONED, BROKEN, HELD, IN_FLIGHT, POSTED, READY, REPORTING, Endpoint, Kept, OnEnd,
    Operation, Peer,
)
from dask_fabric.paths.ucx.worker cimport (
    await_change, await_change_until, deadline_ns, lock, unlock, unlock_and_wake, worker,
)

cdef enum:
    ADDRESS_BYTES_MIN = 16
    ADDRESS_BYTES_LIMIT = 64 << 10


def start(library, options=(), defaults=None, estimated_endpoints=64):
    """Start UCX in this process; without effect where it runs on that library.

    Parameters
    ----------
    library : dask_fabric.paths.ucx.library.Library
        What the loader has chosen.
    options : iterable of (str, str)
        UCX's settings, without ``UCX_``. The environment wins.
    defaults : dict of str to str, optional
        More of them, which options and the environment win over.
    estimated_endpoints : int
        How many peers to expect: UCX chooses transports that scale by it.

    Raises
    ------
    ForkedError
        This is a forked child, where UCX cannot be used.
    UnavailableError
        The library cannot be loaded, or another one runs already.
    LibraryError
        UCX does not start.
    """
    cdef bint registered
    ucx_worker.start(library, options, defaults, estimated_endpoints)
    with nogil:
        lock()
        registered = worker.attend != NULL or (register() and register_frames())
        unlock_and_wake()
    if not registered:
        raise LibraryError("UCX does not take a handler of active messages", -1)


def version():
    """Give the version of UCX that runs here; both ends of a connection must have the same one.

    Returns
    -------
    tuple of int
        Three numbers.
    """
    return libucp.version()


def address():
    """Give the address of this process for its peers.

    Returns
    -------
    bytes
    """
    return ucx_worker.address()


def statistics():
    """Endpoints, connections and operations of this process.

    Returns
    -------
    dict
        ``endpoint_count``, ``peer_count`` (that UCX was asked to connect to), ``connection_count``
        (open), ``kept_count`` (frames that came before they were posted), ``break_count``
        (connections given up while in use), ``held_count`` (offers that wait for the peer to be
        wired up), ``posted_count`` (receives that wait for their frame), ``in_flight_count``,
        ``abandoned_count`` (cancelled, but not let go of by UCX) and ``refused_count`` (messages
        that were of no endpoint or did not fit).
    """
    cdef Figures counted
    cdef size_t held_count, posted_count, in_flight_count, unended_count, refusal_count
    with nogil:
        # No Python object under the lock: the collector may run for any, and close a channel.
        lock()
        counted = figures()
        held_count, posted_count = count_of(HELD), count_of(POSTED)
        in_flight_count, unended_count = count_of(IN_FLIGHT), count_of(ABANDONED)
        refusal_count = refused_count()
        unlock()
    return {
        **counted,
        "held_count": held_count,
        "posted_count": posted_count,
        "in_flight_count": in_flight_count,
        "abandoned_count": unended_count,
        "refused_count": refusal_count,
    }


# ---------------------------------------------------------------- endpoints

cdef bint open_endpoint(
    const char *address, size_t address_length, uint64_t own_token, uint64_t peer_token
) noexcept nogil:
    """Open an endpoint to the endpoint `peer_token` of the worker at `address`.

    Returns
    -------
    bool
        False where UCX cannot be used, memory is short, the own token is taken, or the address is
        none at first sight. UCX ends the process for one that is malformed: ask only those for it
        who may run code here.
    """
    cdef bint is_open = (
        lock() and ADDRESS_BYTES_MIN <= address_length <= ADDRESS_BYTES_LIMIT
        and address[0] == worker.address_mark and find_endpoint(own_token) == NULL
        and add_endpoint(address, address_length, own_token, peer_token)
    )
    unlock_and_wake()
    return is_open


cdef void close_endpoint(uint64_t own_token, int64_t patience_ns) noexcept nogil:
    """Close an endpoint: no callback comes afterwards.

    What is in flight can only be ended with the connection, so that other endpoints to the same
    peer fail too. What does not end within the time then is abandoned; see `cancel`.
    """
    cdef Endpoint *endpoint = NULL
    cdef Operation *operation
    if lock():
        endpoint = find_endpoint(own_token)
    if endpoint != NULL:
        release_all(&endpoint.held)
        release_all(&endpoint.posted)
        operation = endpoint.in_flight.first
        while operation != NULL:
            operation.is_cancelled = True
            operation = operation.next
        _await_quiet(endpoint, patience_ns)
        while endpoint.in_flight.first != NULL:
            abandon(endpoint.in_flight.first)
        release_ended_of(endpoint)
        while is_reporting(endpoint) and not worker.is_stopping:
            await_change()
        remove_endpoint(endpoint)
    unlock_and_wake()


cdef void fail(uint64_t own_token) noexcept nogil:
    """End all operations of an endpoint with errors, and with them its connection.

    The callbacks come soon, as always. A peer that has greeted none of its endpoints is not tried
    again for a while: the shared queue that UCX receives by may be stuck for ever, where a process
    that was killed had begun to write to it.
    """
    cdef Endpoint *endpoint = NULL
    if lock():
        endpoint = find_endpoint(own_token)
    if endpoint != NULL:
        if not any_ready(endpoint.peer):
            back_off(endpoint.peer)
        break_connection(endpoint.peer, ECANCELED)
        break_endpoint(endpoint, ECANCELED)
    unlock_and_wake()


cdef void _await_quiet(Endpoint *endpoint, int64_t patience_ns) noexcept nogil:
    """Wait until UCX uses no memory of an endpoint, whose connection breaks for it."""
    cdef int64_t until_ns = deadline_ns(patience_ns)
    if endpoint.in_flight.first != NULL:
        break_connection(endpoint.peer, ECANCELED)
        ucp.worker_signal(worker.handle)
    while endpoint.in_flight.first != NULL and not worker.is_stopping:
        if endpoint.peer.is_stuck or not await_change_until(until_ns):
            endpoint.peer.is_stuck = True
            return


cdef int endpoint_error(uint64_t own_token) noexcept nogil:
    """The errno of a broken endpoint; 0 where it can be used."""
    cdef Endpoint *endpoint = NULL
    cdef int error = EBADF
    if lock():
        endpoint = find_endpoint(own_token)
    if endpoint != NULL:
        error = endpoint.error
    unlock()
    return error


cdef bint is_wired(uint64_t own_token) noexcept nogil:
    """Whether the peer's endpoint has greeted, so that frames are sent at once."""
    cdef Endpoint *endpoint = NULL
    cdef bint wired = False
    if lock():
        endpoint = find_endpoint(own_token)
        wired = endpoint != NULL and endpoint.state == READY
    unlock()
    return wired


# ---------------------------------------------------------------- operations

cdef uint64_t offer(
    uint64_t own_token, uint64_t sequence, uint32_t index, void *memory, size_t nbytes,
    int memory_kind, OnEnd on_end, void *context
) noexcept nogil:
    """Send a frame; `on_end` is called when its memory is free again.

    Returns
    -------
    int
        The operation's name; 0 where there is no such endpoint, or memory is short.
    """
    cdef Operation *operation = _begin(
        own_token, sequence, index, memory, nbytes, memory_kind, on_end, context
    )
    cdef uint64_t name = 0
    if operation != NULL:
        name = operation.name
        operation.header.token = operation.endpoint.peer_token
        if operation.endpoint.state == BROKEN:
            end(operation, operation.endpoint.error)
        elif operation.endpoint.state == READY:
            send_frame(operation)
        else:
            put(operation, &operation.endpoint.held, HELD)
    unlock_and_wake()
    return name


cdef uint64_t post(
    uint64_t own_token, uint64_t sequence, uint32_t index, void *memory, size_t nbytes,
    int memory_kind, OnEnd on_end, void *context
) noexcept nogil:
    """Say where a frame goes; `on_end` is called when it is there whole, or will not come.

    Returns
    -------
    int
        The operation's name; 0 where there is no such endpoint, or memory is short.
    """
    cdef Operation *operation = _begin(
        own_token, sequence, index, memory, nbytes, memory_kind, on_end, context
    )
    cdef uint64_t name = 0
    cdef Kept *kept
    if operation != NULL:
        name = operation.name
        kept = take_kept(operation.endpoint, sequence, index)
        if operation.endpoint.state == BROKEN:
            end(operation, operation.endpoint.error)
        elif kept == NULL:
            put(operation, &operation.endpoint.posted, POSTED)
        else:
            receive_kept(operation, kept)
    unlock_and_wake()
    return name


cdef Operation *_begin(
    uint64_t own_token, uint64_t sequence, uint32_t index, void *memory, size_t nbytes,
    int memory_kind, OnEnd on_end, void *context
) noexcept nogil:
    """Take the lock, which the caller lets go of, and a new operation; NULL where there is none."""
    cdef Endpoint *endpoint = NULL
    cdef Operation *operation = NULL
    if lock():
        endpoint = find_endpoint(own_token)
    if endpoint != NULL and memory_kind != HOST and worker.bind != NULL:
        worker.bind(worker.bind_argument)
    if endpoint != NULL:
        operation = new_operation(memory, nbytes, memory_kind, on_end, context)
    if operation != NULL:
        operation.endpoint = endpoint
        operation.header.sequence = sequence
        operation.header.index = index
        use(endpoint)
    return operation


cdef Cancelled cancel(uint64_t name, int64_t patience_ns) noexcept nogil:
    """End an operation; its callback is not called afterwards.

    UCX may not let go of its memory: where the queue to a dead or stopped process of this host is
    full, it waits for room in it. After the time the operation is abandoned, and its memory must
    live on.
    """
    cdef Operation *operation = NULL
    cdef Cancelled outcome = WAS_OVER
    if lock():
        operation = find_operation(name)
    if operation != NULL and operation.state == IN_FLIGHT:
        outcome = _cancel_in_flight(operation, patience_ns)
    elif operation != NULL and operation.state == REPORTING:
        while find_operation(name) != NULL and not worker.is_stopping:
            await_change()
    elif operation != NULL and operation.state != ABANDONED:
        release(operation)
        outcome = CANCELLED
    unlock_and_wake()
    return outcome


cdef Cancelled _cancel_in_flight(Operation *operation, int64_t patience_ns) noexcept nogil:
    """It cannot be ended alone: UCX's own cancelling does nothing for a rendezvous."""
    cdef uint64_t name = operation.name
    cdef Peer *peer = operation.endpoint.peer
    cdef int64_t until_ns = deadline_ns(patience_ns)
    operation.is_cancelled = True
    break_connection(peer, ECANCELED)
    ucp.worker_signal(worker.handle)
    while find_operation(name) != NULL and not worker.is_stopping:
        if peer.is_stuck or not await_change_until(until_ns):
            peer.is_stuck = True
            abandon(operation)
            return UNENDED
    return CANCELLED


cdef size_t abandoned_count() noexcept nogil:
    """How many operations UCX has not ended although they were cancelled."""
    cdef size_t count = 0
    if lock():
        count = count_of(ABANDONED)
    unlock()
    return count
