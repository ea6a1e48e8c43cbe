"""UCX's library libucp, opened at run time, and the conversion of its errors into ours."""

import os

from libc.errno cimport (
    ECONNREFUSED, ECONNRESET, EHOSTUNREACH, EIO, EMSGSIZE, ENODEV, ENOMEM, ETIMEDOUT,
)
from libc.stdint cimport uintptr_t

from dask_fabric.errors import LibraryError, UnavailableError
from dask_fabric.linux cimport (
    ECANCELED, RTLD_LAZY, RTLD_LOCAL, Dl_info, dladdr, dlerror, dlopen, dlsym,
)

# Loaded from one folder and in this order: mixing the libraries of two builds crashes.
LIBRARIES = ("libucm", "libucs", "libuct")
SUFFIX = ".so.0"


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
    for name in LIBRARIES:
        _open(os.path.join(os.path.dirname(path), name + SUFFIX))
    _fill_table(_open(path))
    loaded = _path_of(<void *> ucp.get_version)
    core = _path_of(<void *> ucp.status_string)
    if os.path.dirname(loaded) != os.path.dirname(core):
        raise UnavailableError(f"{loaded} runs with the core of another UCX, {core}")
    return loaded


def version():
    """Return the version of the open library.

    Returns
    -------
    tuple of int
        Three numbers.
    """
    cdef unsigned int major = 0, minor = 0, release = 0
    if ucp.get_version == NULL:
        raise UnavailableError("no UCX library is open")
    ucp.get_version(&major, &minor, &release)
    return major, minor, release


cdef void *_open(str path) except NULL:
    # Lazy binding, because libucm and libucs need each other.
    cdef bytes encoded = os.fsencode(path)
    cdef const char *name = encoded
    cdef void *library
    with nogil:     # a file system may be slow
        library = dlopen(name, RTLD_LAZY | RTLD_LOCAL)
    if library == NULL:
        raise UnavailableError(f"UCX cannot be loaded: {os.fsdecode(dlerror())}")
    return library


cdef str _path_of(void *function):
    cdef Dl_info info
    if not dladdr(function, &info):
        raise UnavailableError("UCX's functions do not belong to a file")
    return os.path.realpath(os.fsdecode(info.dli_fname))


cdef void *_symbol(void *library, bytes name) except NULL:
    cdef void *symbol = dlsym(library, name)
    if symbol == NULL:
        raise UnavailableError(f"this UCX is too old: it has no {name.decode()}")
    return symbol


cdef int _fill_table(void *library) except -1:
    # The structure is an array of pointers in this order.
    cdef void **entries = <void **> &ucp
    names = (
        b"ucs_status_string", b"ucp_get_version", b"ucp_config_read", b"ucp_config_release",
        b"ucp_init_version", b"ucp_cleanup", b"ucp_worker_create", b"ucp_worker_query",
        b"ucp_worker_release_address", b"ucp_worker_destroy", b"ucp_worker_get_efd",
        b"ucp_worker_progress", b"ucp_worker_arm", b"ucp_worker_signal",
        b"ucp_worker_set_am_recv_handler", b"ucp_ep_create", b"ucp_ep_close_nbx",
        b"ucp_am_send_nbx", b"ucp_am_recv_data_nbx", b"ucp_am_data_release", b"ucp_request_free",
    )
    assert len(names) * sizeof(void *) == sizeof(Ucp)
    for index, name in enumerate(names):
        entries[<Py_ssize_t> index] = _symbol(library, name)
    return 0


# ---------------------------------------------------------------- statuses

cdef int check(Status status, str call) except -1:
    """Raise an error if the status that `call` returned is one."""
    if status >= 0:
        return 0
    text = ucp.status_string(status).decode("utf-8", "replace")
    raise LibraryError(f"UCX: {call}: {text} (status {status})", status)


cdef Status status_of(StatusPointer pointer) noexcept nogil:
    """The status of a call that may return a request instead."""
    if pointer == NULL:
        return OK
    if <uintptr_t> pointer >= <uintptr_t> ERROR_LAST:
        return <Status> <Py_ssize_t> pointer
    return IN_PROGRESS


cdef int errno_of(Status status) noexcept nogil:
    """The errno closest to a status; 0 if it is not an error."""
    if status >= 0:
        return 0
    if status == -4:
        return ENOMEM
    if status == -6 or status == -7:    # unreachable, invalid address
        return EHOSTUNREACH
    if status == -9:                    # truncated
        return EMSGSIZE
    if status == -14:
        return ENODEV
    if status == -16:
        return ECANCELED
    if status == -20 or status == -80:  # timed out; endpoint timeout
        return ETIMEDOUT
    if status == ERROR_REJECTED:
        return ECONNREFUSED
    if status == -24 or status == -25:  # not connected, connection reset
        return ECONNRESET
    return EIO
