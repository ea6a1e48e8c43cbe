"""Outgoing frames. All of this needs the worker's lock."""

from libc.string cimport memset

from dask_fabric.paths.ucx.libucp cimport (
    AM_SEND_FLAG_REPLY, AM_SEND_FLAG_RNDV, IN_PROGRESS, OP_ATTR_FIELD_CALLBACK, OP_ATTR_FIELD_FLAGS,
    OP_ATTR_FIELD_MEMORY_TYPE, OP_ATTR_FIELD_USER_DATA, RequestParams, Status, errno_of, status_of,
    ucp,
)
from dask_fabric.paths.ucx.operations cimport end, put
from dask_fabric.paths.ucx.state cimport AM_FRAME, IN_FLIGHT, FrameHeader, Operation


cdef void send_frame(Operation *operation) noexcept nogil:
    """Hand an offer to UCX, on the connection of its endpoint."""
    cdef RequestParams params
    cdef Status status
    memset(&params, 0, sizeof(params))
    params.attribute_mask = (
        OP_ATTR_FIELD_CALLBACK | OP_ATTR_FIELD_USER_DATA | OP_ATTR_FIELD_FLAGS
        | OP_ATTR_FIELD_MEMORY_TYPE
    )
    params.flags = AM_SEND_FLAG_REPLY | AM_SEND_FLAG_RNDV
    params.callback = <void *> _frame_sent
    params.user_data = operation
    params.memory_type = operation.memory_kind
    # First, because the callback may run before the call returns.
    put(operation, &operation.endpoint.in_flight, IN_FLIGHT)
    status = status_of(ucp.am_send_nbx(
        operation.endpoint.peer.handle, AM_FRAME, &operation.header, sizeof(FrameHeader),
        operation.memory, operation.header.nbytes, &params
    ))
    if status != IN_PROGRESS:
        end(operation, errno_of(status))


cdef void _frame_sent(void *request, Status status, void *user_data) noexcept nogil:
    ucp.request_free(request)
    end(<Operation *> user_data, errno_of(status))
