"""UCX's library libucp, opened at run time, and the conversion of its errors into ours."""

from collections.abc import Callable
from typing import Any, TypedDict

LIBRARIES = ("libucm", "libucs", "libuct")
SUFFIX = ".so.0"

class ContextParams(TypedDict):
    field_mask: int
    features: int
    request_size: int
    request_init: Any
    request_cleanup: Any
    tag_sender_mask: int
    mt_workers_shared: int
    estimated_num_eps: int
    estimated_num_ppn: int
    name: int
    later_fields: list[int]

class WorkerParams(TypedDict):
    field_mask: int
    thread_mode: int
    cpu_mask: list[int]
    events: int
    user_data: Any
    event_fd: int
    flags: int
    name: int
    am_alignment: int
    client_id: int
    later_fields: list[int]

class WorkerAttributes(TypedDict):
    field_mask: int
    thread_mode: int
    address_flags: int
    address: Any
    address_length: int
    max_am_header: int
    name: bytes
    later_fields: list[int]

class ErrorHandler(TypedDict):
    callback: Callable[[Any, Any, int], None]
    argument: Any

class EndpointParams(TypedDict):
    field_mask: int
    address: Any
    error_mode: int
    error_handler: ErrorHandler
    user_data: Any
    flags: int
    socket_address: Any
    socket_address_length: int
    connection_request: Any
    name: int
    later_fields: list[int]

class ReceiveAttributes(TypedDict):
    flags: int
    reply_endpoint: Any

class HandlerParams(TypedDict):
    field_mask: int
    id: int
    flags: int
    callback: Callable[[Any, Any, int, Any, int, ReceiveAttributes], int]
    argument: Any
    later_fields: list[int]

class RequestParams(TypedDict):
    attribute_mask: int
    flags: int
    request: Any
    callback: Any
    datatype: int
    user_data: Any
    reply_buffer: Any
    memory_type: int
    receive_info: Any
    memory_handle: Any
    later_fields: list[int]

class Ucp(TypedDict):
    status_string: Callable[[int], int]
    get_version: Callable[[int, int, int], None]
    config_read: Callable[[int, int, Any], int]
    config_release: Callable[[Any], None]
    init_version: Callable[[int, int, ContextParams, Any, Any], int]
    cleanup: Callable[[Any], None]
    worker_create: Callable[[Any, WorkerParams, Any], int]
    worker_query: Callable[[Any, WorkerAttributes], int]
    worker_release_address: Callable[[Any, Any], None]
    worker_destroy: Callable[[Any], None]
    worker_get_efd: Callable[[Any, int], int]
    worker_progress: Callable[[Any], int]
    worker_arm: Callable[[Any], int]
    worker_signal: Callable[[Any], int]
    worker_set_am_recv_handler: Callable[[Any, HandlerParams], int]
    ep_create: Callable[[Any, EndpointParams, Any], int]
    ep_close_nbx: Callable[[Any, RequestParams], Any]
    am_send_nbx: Callable[[Any, int, Any, int, Any, int, RequestParams], Any]
    am_recv_data_nbx: Callable[[Any, Any, Any, int, RequestParams], Any]
    am_data_release: Callable[[Any, Any], None]
    request_free: Callable[[Any], None]

def open_library(path):
    """Open libucp, and its lower libraries from the same folder. They are never closed.

    Parameters
    ----------
    path : str
        Full path.

    Returns
    -------
    str
        The file that was actually loaded.

    Raises
    ------
    UnavailableError
        It cannot be loaded, lacks a function, or is mixed with another UCX.
    """

def version():
    """Return the version of the open library.

    Returns
    -------
    tuple of int
        Three numbers.
    """
