"""Incoming frames: each is received into its posted memory, kept as unexpected, or refused.

All of this needs the worker's lock. Everything that a peer sends is checked.
"""

from libc.errno cimport EMSGSIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from dask_fabric.paths.ucx.libucp cimport (
    AM_FLAG_PERSISTENT_DATA, AM_FLAG_WHOLE_MSG, AM_HANDLER_PARAM_FIELD_CB,
    AM_HANDLER_PARAM_FIELD_FLAGS, AM_HANDLER_PARAM_FIELD_ID, AM_RECV_ATTR_FIELD_REPLY_EP,
    AM_RECV_ATTR_FLAG_DATA, AM_RECV_ATTR_FLAG_RNDV, ERROR_REJECTED, HOST, IN_PROGRESS, OK,
    OP_ATTR_FIELD_CALLBACK, OP_ATTR_FIELD_MEMORY_TYPE, OP_ATTR_FIELD_USER_DATA, HandlerParams,
    ReceiveAttributes, RequestParams, Status, errno_of, status_of, ucp,
)
from dask_fabric.paths.ucx.unexpected cimport discard, keep
from dask_fabric.paths.ucx.operations cimport end, put
from dask_fabric.paths.ucx.peers cimport find_endpoint
from dask_fabric.paths.ucx.state cimport (
    AM_FRAME, BROKEN, IN_FLIGHT, Endpoint, FrameHeader, Kept, Operation,
)
from dask_fabric.paths.ucx.worker cimport worker

cdef size_t refusals = 0


cdef size_t refused_count() noexcept nogil:
    """The number of frames without an endpoint, above the bounds of `keep`, or that did not fit."""
    return refusals


cdef bint register_frames() noexcept nogil:
    """Register the handler for frames; False if UCX refuses."""
    cdef HandlerParams params
    memset(&params, 0, sizeof(params))
    params.field_mask = (
        AM_HANDLER_PARAM_FIELD_ID | AM_HANDLER_PARAM_FIELD_FLAGS | AM_HANDLER_PARAM_FIELD_CB
    )
    params.id = AM_FRAME
    params.flags = AM_FLAG_WHOLE_MSG | AM_FLAG_PERSISTENT_DATA
    params.callback = _frame_came
    return ucp.worker_set_am_recv_handler(worker.handle, &params) == OK


cdef Status _frame_came(
    void *argument, const void *raw_header, size_t header_length, void *data, size_t length,
    const ReceiveAttributes *attributes
) noexcept nogil:
    """Handle an incoming frame, as UCX's callback.

    The return value says whether we keep the data. Refusing a rendezvous fails the peer's send.
    """
    global refusals
    cdef FrameHeader header
    cdef Endpoint *endpoint = NULL
    cdef Operation *operation
    cdef bint is_rendezvous = attributes.flags & AM_RECV_ATTR_FLAG_RNDV
    cdef bint is_persistent = attributes.flags & (AM_RECV_ATTR_FLAG_DATA | AM_RECV_ATTR_FLAG_RNDV)
    if header_length == sizeof(FrameHeader):
        memcpy(&header, raw_header, sizeof(FrameHeader))
        endpoint = _endpoint_for(&header, attributes, length)
    if endpoint != NULL:
        operation = _posted(endpoint, header.sequence, header.index)
        if operation != NULL and operation.header.nbytes == length:
            if is_rendezvous or (operation.memory_kind != HOST and length > 0):
                return _start_receive(operation, data)
            _copy(operation, data)
            return OK
        if operation != NULL:
            end(operation, EMSGSIZE)
        elif (is_persistent or length == 0) and keep(
            endpoint, &header, data if is_persistent else NULL, length, is_rendezvous
        ):
            return IN_PROGRESS if is_persistent else OK
    refusals += 1
    return ERROR_REJECTED if is_rendezvous else OK


cdef Endpoint *_endpoint_for(
    const FrameHeader *header, const ReceiveAttributes *attributes, size_t length
) noexcept nogil:
    """The endpoint of a frame; NULL unless the frame arrived on that endpoint's connection.

    Otherwise closing the connection would not end its receive.
    """
    cdef Endpoint *endpoint = find_endpoint(header.token)
    if (
        endpoint == NULL or endpoint.state == BROKEN or header.nbytes != length
        or not attributes.flags & AM_RECV_ATTR_FIELD_REPLY_EP
        or attributes.reply_endpoint != endpoint.peer.handle
    ):
        return NULL
    return endpoint


cdef Operation *_posted(Endpoint *endpoint, uint64_t sequence, uint32_t index) noexcept nogil:
    cdef Operation *operation = endpoint.posted.first
    while operation != NULL and (
        operation.header.sequence != sequence or operation.header.index != index
    ):
        operation = operation.next
    return operation


cdef void receive_kept(Operation *operation, Kept *kept) noexcept nogil:
    """Receive an unexpected message, and free what was kept of it."""
    if kept.nbytes != operation.header.nbytes:
        end(operation, EMSGSIZE)
        discard(kept)
    elif kept.is_rendezvous or (operation.memory_kind != HOST and kept.nbytes > 0):
        _start_receive(operation, kept.descriptor)
        free(kept)              # UCX frees the descriptor
    else:
        _copy(operation, kept.descriptor)
        discard(kept)


cdef void _copy(Operation *operation, const void *data) noexcept nogil:
    if operation.header.nbytes:
        memcpy(operation.memory, data, operation.header.nbytes)
    end(operation, 0)


cdef Status _start_receive(Operation *operation, void *descriptor) noexcept nogil:
    """Let UCX fill an operation's memory; the result says whether it still uses the descriptor."""
    cdef RequestParams params
    cdef Status status
    memset(&params, 0, sizeof(params))
    params.attribute_mask = (
        OP_ATTR_FIELD_CALLBACK | OP_ATTR_FIELD_USER_DATA | OP_ATTR_FIELD_MEMORY_TYPE
    )
    params.callback = <void *> _frame_received
    params.user_data = operation
    params.memory_type = operation.memory_kind
    # First, because the callback may run before the call returns.
    put(operation, &operation.endpoint.in_flight, IN_FLIGHT)
    status = status_of(ucp.am_recv_data_nbx(
        worker.handle, descriptor, operation.memory, operation.header.nbytes, &params
    ))
    if status != IN_PROGRESS:
        end(operation, errno_of(status))
    return IN_PROGRESS if status == IN_PROGRESS else OK


cdef void _frame_received(
    void *request, Status status, size_t length, void *user_data
) noexcept nogil:
    cdef Operation *operation = <Operation *> user_data
    ucp.request_free(request)
    if status == OK and length != operation.header.nbytes:
        end(operation, EMSGSIZE)
    else:
        end(operation, errno_of(status))
