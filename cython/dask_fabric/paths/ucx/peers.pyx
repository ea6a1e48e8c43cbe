"""Peers of the `ucx` path, their connections, and the endpoints that share them.

Theory of operation
-------------------
All of this needs the worker's lock. A `Peer` is a worker of another process. It has at most one
connection, shared by its endpoints, one per comm. The progress thread makes the connection when an
endpoint has its first frame: most comms never need one.

Wiring up: UCX may hang if a large message is the first on a connection. So each endpoint first
*greets* its counterpart, by a small message. Offers are held until the counterpart has greeted or
answered. The states of an endpoint:

* WIRING: no greeting has arrived. The receiving side greets too, because the sender's greeting may
  have arrived before the receiver's endpoint existed, and was dropped.
* READY: the counterpart has greeted. Frames are sent at once.
* BROKEN: every operation fails, until the endpoint is closed or revived. The comm uses the stream.

A broken endpoint can be *revived*: it is WIRING again, and its greeting says so. That revives the
counterpart too, unless UCX still uses some of its memory. No frame is at risk meanwhile.
The messages of before are not confused with later ones, which have higher numbers.

Serial numbers: UCX pairs the n-th connection that one side makes to a worker with the n-th of the
other side. If one side closes its connection alone and makes a new one, the two sides get out of
step. So each side counts (`serial`), and a greeting carries its sender's number. A side that is
behind breaks its connection, and makes new ones until it has caught up. A side that is ahead greets
again, which shows the peer its number. So both ends always use the same connection, and closing it
ends receives as well as sends.

A peer record is never freed, because UCX never resets its own count. A connection without endpoints
is closed after `IDLE_MS`. A peer that does not greet is not tried again for `BACKOFF_MS`.

The progress thread runs `_attend` between two rounds of progress: it handles the peers that are due
(`is_due`), sends greetings and held frames, then reports ended operations.
"""

from libc.errno cimport ECONNRESET, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from dask_fabric.clock cimport now_ns
from dask_fabric.paths.ucx.libucp cimport (
    AM_HANDLER_PARAM_FIELD_CB, AM_HANDLER_PARAM_FIELD_ID, AM_SEND_FLAG_EAGER,
    ERR_HANDLING_MODE_PEER, EP_CLOSE_FLAG_FORCE, EP_PARAM_FIELD_ERR_HANDLER,
    EP_PARAM_FIELD_ERR_HANDLING_MODE, EP_PARAM_FIELD_REMOTE_ADDRESS, IN_PROGRESS, OK,
    OP_ATTR_FIELD_CALLBACK, OP_ATTR_FIELD_FLAGS, OP_ATTR_FIELD_USER_DATA, EndpointHandle,
    EndpointParams, HandlerParams, ReceiveAttributes, RequestParams, Status, errno_of, status_of,
    ucp,
)
from dask_fabric.paths.ucx.unexpected cimport discard_all
from dask_fabric.paths.ucx.operations cimport end_all, is_reporting, report
from dask_fabric.paths.ucx.send cimport send_frame
from dask_fabric.paths.ucx.state cimport (
    AM_GREETING, BROKEN, IS_ANSWER, READY, REVIVES, WIRING, Endpoint, Greeting, Peer,
)
from dask_fabric.paths.ucx.worker cimport worker

cdef enum:
    ATTEMPT_LIMIT = 3           # connections that may break before the counterpart has greeted
    CATCH_UP_LIMIT = 1000       # connections, since a peer may announce any serial
    IDLE_MS = 1000              # until an unused connection is closed: making one takes time
    BACKOFF_MS = 60_000         # until a peer that did not greet is tried again
    BUCKET_BITS = 12
    BUCKET_COUNT = 1 << BUCKET_BITS

cdef Endpoint *buckets[BUCKET_COUNT]
cdef Peer *peers = NULL
cdef bint any_due = False
cdef size_t endpoint_count = 0, break_count = 0

memset(buckets, 0, sizeof(buckets))


cdef Figures figures() noexcept nogil:
    """Count the endpoints and connections of this process."""
    cdef Figures counted = Figures(endpoint_count, 0, 0, 0, break_count)
    cdef Peer *peer = peers
    cdef Endpoint *endpoint
    while peer != NULL:
        counted.peer_count += 1
        counted.connection_count += peer.handle != NULL
        endpoint = peer.endpoints
        while endpoint != NULL:
            counted.kept_count += endpoint.kept_count
            endpoint = endpoint.next_of_peer
        peer = peer.next
    return counted


# ---------------------------------------------------------------- endpoints

cdef Endpoint **_bucket_of(uint64_t token) noexcept nogil:
    return &buckets[(token * <uint64_t> 0x9E3779B97F4A7C15) >> (64 - BUCKET_BITS)]


cdef Endpoint *find_endpoint(uint64_t token) noexcept nogil:
    cdef Endpoint *endpoint = _bucket_of(token)[0]
    while endpoint != NULL and endpoint.own_token != token:
        endpoint = endpoint.next_of_bucket
    return endpoint


cdef bint add_endpoint(
    const char *address, size_t address_length, uint64_t own_token, uint64_t peer_token
) noexcept nogil:
    """Add an endpoint, which is wired up at its first use; False if memory is short."""
    global endpoint_count
    cdef Endpoint **bucket = _bucket_of(own_token)
    cdef Peer *peer = _peer_at(address, address_length)
    cdef Endpoint *endpoint = NULL
    if peer != NULL:
        endpoint = <Endpoint *> calloc(1, sizeof(Endpoint))
    if endpoint == NULL:
        return False
    endpoint.own_token = own_token
    endpoint.peer_token = peer_token
    endpoint.peer = peer
    endpoint.next_of_peer = peer.endpoints
    peer.endpoints = endpoint
    endpoint.next_of_bucket = bucket[0]
    bucket[0] = endpoint
    endpoint_count += 1
    return True


cdef void use(Endpoint *endpoint) noexcept nogil:
    """Start to wire up an endpoint, at its first frame, unless that was done.

    Both sides do this: the sender's greeting may arrive before the receiver's endpoint exists.
    """
    if endpoint.state == WIRING and not endpoint.needs_connection:
        if now_ns() < endpoint.peer.backoff_until_ns:
            break_endpoint(endpoint, ETIMEDOUT)
        else:
            _request_wiring(endpoint)


cdef bint any_ready(const Peer *peer) noexcept nogil:
    """Whether the peer has an endpoint that is READY."""
    cdef const Endpoint *endpoint = peer.endpoints
    while endpoint != NULL and endpoint.state != READY:
        endpoint = endpoint.next_of_peer
    return endpoint != NULL


cdef void back_off(Peer *peer) noexcept nogil:
    """For a while, or until the peer greets, break its endpoints at their first use."""
    peer.backoff_until_ns = now_ns() + BACKOFF_MS * <int64_t> 1_000_000


cdef void _request_wiring(Endpoint *endpoint) noexcept nogil:
    endpoint.needs_connection = endpoint.is_greeting_due = True
    _schedule(endpoint.peer)


cdef void remove_endpoint(Endpoint *endpoint) noexcept nogil:
    """Free an endpoint that has no operations. Without endpoints, the connection becomes idle."""
    global endpoint_count
    cdef Peer *peer = endpoint.peer
    cdef Endpoint **link = &peer.endpoints
    while link[0] != endpoint:
        link = &link[0].next_of_peer
    link[0] = endpoint.next_of_peer
    link = _bucket_of(endpoint.own_token)
    while link[0] != endpoint:
        link = &link[0].next_of_bucket
    link[0] = endpoint.next_of_bucket
    if peer.endpoints == NULL:
        peer.idle_since_ns = now_ns()
        worker.sleep_limit_ms = IDLE_MS
    discard_all(endpoint)
    free(endpoint)
    endpoint_count -= 1


# ---------------------------------------------------------------- connections

cdef Peer *_peer_at(const char *address, size_t address_length) noexcept nogil:
    global peers
    cdef Peer *peer = peers
    while peer != NULL:
        if (
            peer.address_length == address_length
            and memcmp(peer.address, address, address_length) == 0
        ):
            return peer
        peer = peer.next
    peer = <Peer *> calloc(1, sizeof(Peer))
    if peer == NULL:
        return NULL
    peer.address = <char *> malloc(address_length)
    if peer.address == NULL:
        free(peer)
        return NULL
    memcpy(peer.address, address, address_length)
    peer.address_length = address_length
    peer.next = peers
    peers = peer
    return peer


cdef void _schedule(Peer *peer) noexcept nogil:
    """Have the progress thread attend to a peer."""
    global any_due
    peer.is_due = any_due = True


cdef int _connect(Peer *peer) noexcept nogil:
    """Make the next connection to a peer; returns an errno or 0."""
    cdef EndpointParams params
    cdef Status status
    memset(&params, 0, sizeof(params))
    params.field_mask = (
        EP_PARAM_FIELD_REMOTE_ADDRESS | EP_PARAM_FIELD_ERR_HANDLING_MODE
        | EP_PARAM_FIELD_ERR_HANDLER
    )
    params.address = peer.address
    params.error_mode = ERR_HANDLING_MODE_PEER
    params.error_handler.callback = _connection_failed
    params.error_handler.argument = peer
    peer.is_stuck = False
    peer.serial += 1            # UCX also counts connections that fail
    status = ucp.ep_create(worker.handle, &params, &peer.handle)
    if status != OK:
        peer.handle = NULL
    return errno_of(status)


cdef void _connection_failed(
    void *argument, EndpointHandle handle, Status status
) noexcept nogil:
    cdef Peer *peer = <Peer *> argument
    if peer.handle == handle:
        peer.error = errno_of(status)
        _schedule(peer)


cdef void _close_connection(Peer *peer) noexcept nogil:
    """Close the connection by force: UCX ends all its operations, now or soon."""
    cdef RequestParams params
    cdef EndpointHandle handle = peer.handle
    peer.handle = NULL
    peer.error = 0
    if handle == NULL:
        return
    memset(&params, 0, sizeof(params))
    params.attribute_mask = OP_ATTR_FIELD_FLAGS | OP_ATTR_FIELD_CALLBACK
    params.flags = EP_CLOSE_FLAG_FORCE
    params.callback = <void *> _done
    ucp.ep_close_nbx(handle, &params)


cdef void _done(void *request, Status status, void *user_data) noexcept nogil:
    free(user_data)             # a greeting, or NULL
    ucp.request_free(request)


cdef void _close_idle() noexcept nogil:
    """Close connections that had no endpoints for a while."""
    cdef Peer *peer = peers
    cdef int64_t limit_ns = now_ns() - IDLE_MS * <int64_t> 1_000_000
    worker.sleep_limit_ms = -1
    while peer != NULL:
        if peer.handle != NULL and peer.endpoints == NULL:
            if peer.idle_since_ns <= limit_ns:
                _close_connection(peer)
            else:
                worker.sleep_limit_ms = IDLE_MS
        peer = peer.next


cdef void break_connection(Peer *peer, int error) noexcept nogil:
    """Close a connection, and break its endpoints; those without frames so far try again.

    If other endpoints share the connection, greet on a new one: otherwise the peer might not notice
    the break, and wait for frames that will never be sent.
    """
    global break_count
    cdef Endpoint *endpoint = peer.endpoints
    cdef bint is_shared = endpoint != NULL and endpoint.next_of_peer != NULL
    cdef bint was_ready
    break_count += peer.handle != NULL
    _close_connection(peer)
    while endpoint != NULL:
        endpoint.attempt_count += endpoint.needs_connection
        if (
            endpoint.state != WIRING or endpoint.in_flight.first != NULL or endpoint.kept != NULL
            or endpoint.attempt_count >= ATTEMPT_LIMIT
        ):
            was_ready = endpoint.state == READY
            break_endpoint(endpoint, error)
            if was_ready and is_shared:
                endpoint.is_greeting_due = True
                _schedule(peer)
        elif endpoint.needs_connection:
            _request_wiring(endpoint)
        endpoint = endpoint.next_of_peer


cdef void break_endpoint(Endpoint *endpoint, int error) noexcept nogil:
    if endpoint.state != BROKEN:
        endpoint.state = BROKEN
        endpoint.error = error
    endpoint.is_greeting_due = endpoint.is_answer_due = endpoint.is_reviving = False
    end_all(&endpoint.held, error)
    end_all(&endpoint.posted, error)
    discard_all(endpoint)


cdef bint revive(Endpoint *endpoint) noexcept nogil:
    """Let a broken endpoint begin anew; False while UCX uses its memory."""
    if endpoint.in_flight.first != NULL or is_reporting(endpoint):
        return False
    endpoint.state = WIRING
    endpoint.error = endpoint.attempt_count = 0
    return True


cdef void greet_anew(Endpoint *endpoint) noexcept nogil:
    """Ask the counterpart of a revived endpoint to begin anew too."""
    endpoint.is_reviving = True
    _request_wiring(endpoint)


# ---------------------------------------------------------------- greetings

cdef bint register() noexcept nogil:
    """Register the handlers for greetings and for the progress thread; False if UCX refuses."""
    cdef HandlerParams params
    memset(&params, 0, sizeof(params))
    params.field_mask = AM_HANDLER_PARAM_FIELD_ID | AM_HANDLER_PARAM_FIELD_CB
    params.id = AM_GREETING
    params.callback = _on_greeting
    worker.attend = _attend
    return ucp.worker_set_am_recv_handler(worker.handle, &params) == OK


cdef Status _on_greeting(
    void *argument, const void *header, size_t header_length, void *data, size_t length,
    const ReceiveAttributes *attributes
) noexcept nogil:
    cdef Greeting greeting
    cdef Endpoint *endpoint
    if header_length == sizeof(greeting):
        memcpy(&greeting, header, sizeof(greeting))
        endpoint = find_endpoint(greeting.token)
        if endpoint != NULL and greeting.flags & REVIVES and endpoint.state != WIRING:
            break_endpoint(endpoint, ECONNRESET)    # this side may not have noticed the break
            if not revive(endpoint):
                _catch_up(endpoint.peer, &greeting)     # ends what is in flight: later it succeeds
        if endpoint != NULL and endpoint.state != BROKEN:
            _process_greeting(endpoint, &greeting)
    return OK


cdef void _process_greeting(Endpoint *endpoint, const Greeting *greeting) noexcept nogil:
    cdef Peer *peer = endpoint.peer
    if greeting.serial > peer.serial:
        endpoint.needs_connection |= _catch_up(peer, greeting)
    elif greeting.serial < peer.serial or peer.handle == NULL:
        if endpoint.state == WIRING:    # the peer is behind: greet, with the higher serial
            _request_wiring(endpoint)
    else:
        peer.backoff_until_ns = 0
        if endpoint.state == WIRING:
            endpoint.state = READY
        endpoint.is_reviving = False
        if not greeting.flags & IS_ANSWER:
            endpoint.is_answer_due = True
    _schedule(peer)


cdef bint _catch_up(Peer *peer, const Greeting *greeting) noexcept nogil:
    """Have as many connections made to a peer as it has made; False for a senseless number."""
    if 0 <= <int64_t> greeting.serial - <int64_t> peer.serial <= CATCH_UP_LIMIT:
        peer.target_serial = greeting.serial
        _schedule(peer)
        return True
    return False


cdef bint _attend() noexcept nogil:
    """Between two rounds of progress: attend to peers that are due, then report ended operations.
    """
    global any_due
    cdef Peer *peer = peers
    cdef bint was_due = any_due
    if any_due:
        any_due = False
        while peer != NULL:
            if peer.is_due:
                peer.is_due = False
                _attend_to(peer)
            peer = peer.next
    if worker.sleep_limit_ms >= 0:
        _close_idle()
    return report() or was_due


cdef void _attend_to(Peer *peer) noexcept nogil:
    cdef Endpoint *endpoint
    cdef int error = peer.error
    if error:
        break_connection(peer, error)
    if peer.endpoints != NULL and peer.serial < peer.target_serial:
        break_connection(peer, ECONNRESET)
        while peer.serial < peer.target_serial:
            _close_connection(peer)
            error = _connect(peer)
    endpoint = peer.endpoints
    while endpoint != NULL:
        _attend_to_endpoint(endpoint)
        endpoint = endpoint.next_of_peer


cdef void _attend_to_endpoint(Endpoint *endpoint) noexcept nogil:
    cdef Peer *peer = endpoint.peer
    cdef int error = 0
    if endpoint.is_greeting_due or endpoint.is_answer_due:
        if peer.handle == NULL:
            error = _connect(peer)
        if not error:
            error = _greet(endpoint)
        if error:
            break_endpoint(endpoint, error)
    while endpoint.state == READY and endpoint.held.first != NULL:
        send_frame(endpoint.held.first)


cdef int _greet(Endpoint *endpoint) noexcept nogil:
    """Send a greeting, or the answer to one; returns an errno or 0."""
    cdef RequestParams params
    cdef Status status
    cdef Greeting *greeting = <Greeting *> malloc(sizeof(Greeting))
    if greeting == NULL:
        return errno_of(-4)
    greeting[0] = Greeting(
        endpoint.peer_token, endpoint.peer.serial,
        REVIVES * endpoint.is_reviving | IS_ANSWER * (not endpoint.is_greeting_due),
    )
    endpoint.is_greeting_due = endpoint.is_answer_due = False
    memset(&params, 0, sizeof(params))
    params.attribute_mask = (
        OP_ATTR_FIELD_CALLBACK | OP_ATTR_FIELD_USER_DATA | OP_ATTR_FIELD_FLAGS
    )
    params.flags = AM_SEND_FLAG_EAGER
    params.callback = <void *> _done
    params.user_data = greeting
    status = status_of(ucp.am_send_nbx(
        endpoint.peer.handle, AM_GREETING, greeting, sizeof(Greeting), NULL, 0, &params
    ))
    if status != IN_PROGRESS:
        free(greeting)
    return errno_of(status)
