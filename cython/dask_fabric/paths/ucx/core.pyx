"""The `ucx` path: frames as active messages, from the sender's memory into the receiver's.

Theory of operation
-------------------
A frame is one active message. Its header names the receiver's endpoint, the message of the comm,
and the frame's index in it. The receiver *posts* a receive with the destination, before or after
the frame arrives (`unexpected` holds it meanwhile). A length that differs from the posted one fails
the receive.

The actors: one UCX `worker` per process, with a progress thread that never takes the GIL; a `Peer`
for each remote worker, with at most one connection (`peers`); any number of endpoints per peer, one
for each comm; and operations (`operations`), each a send or a receive of one frame.

An operation goes through these states:

* HELD: a send that waits until the peer's endpoint has greeted; or POSTED: a receive without a
  frame.
* IN_FLIGHT: UCX uses its memory.
* ENDED: done or failed. The progress thread then calls its callback (REPORTING) without the lock,
  and frees it.
* ABANDONED: cancelled, but UCX may still use its memory. It is freed when UCX ends it, maybe never.

`Worker.mutex` guards UCX and all of this. A call takes the lock (`lock`), changes the state, and
wakes the progress thread (`unlock_and_wake`).

An operation in flight cannot be cancelled alone: UCX's cancel does nothing for a rendezvous. So
`cancel` and `close_endpoint` break the whole connection, which fails the operations of other
endpoints to that peer too. They wait a bounded time for UCX to end the operation, then abandon it.
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
    Figures, add_endpoint, any_ready, back_off, break_connection, break_endpoint, figures,
    find_endpoint, greet_anew, register, remove_endpoint, revive, use,
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
    """Start UCX in this process; no effect if it runs already, on the same library.

    Parameters
    ----------
    library : dask_fabric.paths.ucx.library.Library
        The library that the loader has chosen.
    options : iterable of (str, str)
        UCX's settings, without the prefix ``UCX_``. The environment takes precedence.
    defaults : dict of str to str, optional
        Settings of lower precedence than options and environment.
    estimated_endpoints : int
        The expected number of peers, by which UCX chooses transports that scale.

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
        raise LibraryError("UCX does not accept a handler of active messages", -1)


def version():
    """Return the version of UCX that runs here; both ends of a connection need the same one.

    Returns
    -------
    tuple of int
        Three numbers.
    """
    return libucp.version()


def address():
    """Return the UCX address of this process, for its peers.

    Returns
    -------
    bytes
    """
    return ucx_worker.address()


def statistics():
    """Count the endpoints, connections and operations of this process.

    Returns
    -------
    dict
        ``endpoint_count``, ``peer_count`` (all peers so far), ``connection_count`` (open),
        ``kept_count`` (frames that arrived before their receive was posted), ``break_count``
        (connections that broke while in use), ``held_count`` (offers that wait for the peer to be
        wired up), ``posted_count`` (receives that wait for their frame), ``in_flight_count``,
        ``abandoned_count`` (cancelled, but not ended by UCX) and ``refused_count`` (frames for
        unknown endpoints, or that did not fit).
    """
    cdef Figures counted
    cdef size_t held_count, posted_count, in_flight_count, unended_count, refusal_count
    with nogil:
        # Create no Python object under the lock: that may run the collector, which may close a
        # channel.
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
        False if UCX cannot be used, memory is short, the own token is in use, or the address is
        obviously wrong. UCX aborts the process on a malformed address: accept addresses only from
        peers that are trusted to run code here.
    """
    cdef bint is_open = (
        lock() and ADDRESS_BYTES_MIN <= address_length <= ADDRESS_BYTES_LIMIT
        and address[0] == worker.address_mark and find_endpoint(own_token) == NULL
        and add_endpoint(address, address_length, own_token, peer_token)
    )
    unlock_and_wake()
    return is_open


cdef void close_endpoint(uint64_t own_token, int64_t patience_ns) noexcept nogil:
    """Close an endpoint. No callback is called afterwards.

    Operations in flight can only be ended by breaking the connection, so other endpoints to the
    same peer fail too. Operations that do not end in time are abandoned; see `cancel`.
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
    """Fail all operations of an endpoint, and break its connection.

    The callbacks follow soon, from the progress thread. If the peer has greeted none of its
    endpoints, it is not tried again for a while: a killed process may have left the shared queue by
    which UCX receives stuck for ever.
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


cdef bint revive_endpoint(uint64_t own_token) noexcept nogil:
    """Let a broken endpoint and its counterpart begin anew: `is_wired` soon tells whether they do.

    Returns
    -------
    bool
        False if that is not possible now.
    """
    cdef Endpoint *endpoint = NULL
    cdef bint is_begun = False
    if lock():
        endpoint = find_endpoint(own_token)
    if endpoint != NULL:
        if endpoint.state == BROKEN and revive(endpoint):
            greet_anew(endpoint)
        is_begun = endpoint.state != BROKEN
    unlock_and_wake()
    return is_begun


cdef void break_again(uint64_t own_token) noexcept nogil:
    """Break an endpoint that was revived without success; its connection serves other endpoints."""
    cdef Endpoint *endpoint = NULL
    if lock():
        endpoint = find_endpoint(own_token)
    if endpoint != NULL:
        break_endpoint(endpoint, ECANCELED)
    unlock_and_wake()


cdef void _await_quiet(Endpoint *endpoint, int64_t patience_ns) noexcept nogil:
    """Break the endpoint's connection, and wait until UCX uses none of its memory."""
    cdef int64_t until_ns = deadline_ns(patience_ns)
    if endpoint.in_flight.first != NULL:
        break_connection(endpoint.peer, ECANCELED)
        ucp.worker_signal(worker.handle)
    while endpoint.in_flight.first != NULL and not worker.is_stopping:
        if endpoint.peer.is_stuck or not await_change_until(until_ns):
            endpoint.peer.is_stuck = True
            return


cdef int endpoint_error(uint64_t own_token) noexcept nogil:
    """The errno of a broken endpoint; 0 if it is usable."""
    cdef Endpoint *endpoint = NULL
    cdef int error = EBADF
    if lock():
        endpoint = find_endpoint(own_token)
    if endpoint != NULL:
        error = endpoint.error
    unlock()
    return error


cdef bint is_wired(uint64_t own_token) noexcept nogil:
    """Whether the peer's endpoint has greeted: frames are then sent without delay."""
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
    """Send a frame; `on_end` is called when UCX does not use its memory any more.

    Returns
    -------
    int
        The operation's name; 0 if there is no such endpoint, or memory is short.
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
    """Post a receive for a frame; `on_end` is called when it has arrived whole, or has failed.

    Returns
    -------
    int
        The operation's name; 0 if there is no such endpoint, or memory is short.
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
    """Take the lock, which the caller unlocks in any case, and make an operation, or NULL."""
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
    """Cancel an operation. Its callback is not called afterwards.

    UCX may keep its memory: if the queue to a dead or stopped process of this host is full, it
    waits for room there. When `patience_ns` are over the operation is abandoned, and its memory
    must stay alive.
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
    """Break the connection: UCX's own cancel does nothing for a rendezvous."""
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
    """The number of cancelled operations that UCX has not ended."""
    cdef size_t count = 0
    if lock():
        count = count_of(ABANDONED)
    unlock()
    return count
