"""libfabric, opened at run time: what it offers here, and its errors as ours.

The program that probes a library (`paths/ofi/probe.py`) loads this module alone, without the
package. So it imports only the standard library.
"""

import os
from contextlib import contextmanager

from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memset, strdup
from posix.signal cimport sigaction, sigaction_t

from dask_fabric.linux cimport (
    RTLD_LAZY, RTLD_LOCAL, Dl_info, dladdr, dlerror, dlopen, dlsym,
)

cdef enum:
    API_VERSION = 1 << 16 | 18      # since 1.18 efa reads by the device
    OLDEST_VERSION = 1 << 16 | 15
    SIGNAL_COUNT = 65

CAP_RMA = 1 << 2
READ = 1 << 8
RECV = 1 << 10
TRANSMIT = 1 << 11
REMOTE_READ = 1 << 12
SOURCE = 1ULL << 57
MODE_CONTEXT = 1ULL << 59 | 1ULL << 52
ADDRESS_UNKNOWN = <uint64_t> -1

# Debian's library brings one that takes over signals while it is loaded; this prevents it.
QUIET = {"IPATH_NO_BACKTRACE": "1", "HFI_NO_BACKTRACE": "1"}
SYMBOLS = (
    b"fi_getinfo", b"fi_dupinfo", b"fi_freeinfo", b"fi_fabric", b"fi_version", b"fi_strerror",
)


def survey(path):
    """Open the library and say what it offers on this host. For a process of its own.

    Parameters
    ----------
    path : str
        A file, or the soname.

    Returns
    -------
    dict
        ``path``: the file that was loaded; ``version``: its two or three numbers; ``domains``: what
        can read remote memory here, in the library's order: provider, name, and PCI address or "".

    Raises
    ------
    OSError
        It cannot be loaded or used.
    """
    cdef Info *info = NULL
    cdef Info *one
    found = {"path": open_library(path), "version": version(), "domains": []}
    try:
        info = ask("", "")
    except OSError:
        return found                # nothing here
    one = info
    while one != NULL:
        found["domains"].append(domain_of(one))
        one = one.next
    fi.freeinfo(info)
    found["domains"] = list(dict.fromkeys(found["domains"]))
    return found


cdef tuple domain_of(const Info *info):
    """Give the provider, the name and the PCI address, or "", of a domain."""
    cdef const BusAttributes *bus = NULL if info.nic == NULL else info.nic.bus_attr
    pci = ""
    if bus != NULL and bus.type == BUS_PCI:
        pci = f"{bus.pci_domain:04x}:{bus.pci_bus:02x}:{bus.pci_device:02x}.{bus.pci_function:x}"
    return os.fsdecode(info.fabric_attr.prov_name), os.fsdecode(info.domain_attr.name), pci


def open_library(path):
    """Open a library, which is never closed.

    Parameters
    ----------
    path : str

    Returns
    -------
    str
        The file that was actually loaded.

    Raises
    ------
    OSError
        It cannot be loaded, is too old, or lacks a function.
    """
    cdef bytes encoded = os.fsencode(path)
    cdef const char *name = encoded
    cdef void **entries = <void **> &fi     # an array of pointers in the order of SYMBOLS
    cdef void *library
    cdef Dl_info place
    assert len(SYMBOLS) * sizeof(void *) == sizeof(Library)
    with kept_signals():
        with nogil:                         # a file system may be slow
            library = dlopen(name, RTLD_LAZY | RTLD_LOCAL)
    if library == NULL:
        raise OSError(f"libfabric cannot be loaded: {os.fsdecode(dlerror())}")
    for index, symbol in enumerate(SYMBOLS):
        entries[<Py_ssize_t> index] = dlsym(library, symbol)
        if entries[<Py_ssize_t> index] == NULL:
            raise OSError(f"this is no libfabric: it has no {symbol.decode()}")
    if fi.version() < OLDEST_VERSION:
        raise OSError(f"libfabric {'.'.join(map(str, version()))} is older than 1.15")
    if not dladdr(<void *> fi.version, &place):
        raise OSError("libfabric's functions do not belong to a file")
    return os.path.realpath(os.fsdecode(place.dli_fname))


def version():
    """Return the version of the open library, two numbers."""
    cdef uint32_t number = fi.version()
    return number >> 16, number & 0xFFFF


@contextmanager
def kept_signals():
    """Undo changes of the process's signal actions: some providers take over signals."""
    cdef Actions before = Actions()
    try:
        yield
    finally:
        before.restore()


cdef class Actions:
    """The actions of all signals when it was made."""

    cdef sigaction_t actions[SIGNAL_COUNT]
    cdef bint is_known[SIGNAL_COUNT]

    def __cinit__(self):
        cdef int number
        for number in range(1, SIGNAL_COUNT):
            self.is_known[number] = sigaction(number, NULL, &self.actions[number]) == 0

    cdef restore(self):
        cdef int number
        for number in range(1, SIGNAL_COUNT):
            if self.is_known[number]:
                sigaction(number, &self.actions[number], NULL)


cdef Info *ask(str provider, str node) except NULL:
    """Ask for endpoints that read remote memory.

    Parameters
    ----------
    provider : str
        Its full name, such as ``verbs;ofi_rxm``; "" for all.
    node : str
        The local address to use; "" leaves it to the provider.

    Returns
    -------
    Info *
        What the library offers, to be freed by the caller.

    Notes
    -----
    Of the modes for registered memory all are offered that this module can serve. A provider clears
    what it does not need. Without capabilities for messages, cxi allots no buffers for them.
    """
    cdef Info *hints = fi.dupinfo(NULL)
    cdef Info *info = NULL
    cdef bytes place = node.encode(), name = provider.encode()
    cdef const char *source = NULL
    cdef uint64_t flags = 0
    cdef uint32_t api_version = min(<uint32_t> API_VERSION, fi.version())
    cdef int status
    if hints == NULL:
        raise MemoryError()
    hints.caps = CAP_RMA | READ | REMOTE_READ
    hints.mode = MODE_CONTEXT
    hints.ep_attr.type = ENDPOINT_RDM
    hints.domain_attr.mr_mode = (
        MR_LOCAL | MR_ALLOCATED | MR_VIRT_ADDR | MR_PROV_KEY | MR_ENDPOINT
    )
    hints.domain_attr.threading = THREAD_SAFE
    hints.domain_attr.resource_mgmt = RESOURCES_MANAGED
    if provider:
        hints.fabric_attr.prov_name = strdup(name)      # the library frees it
    if node:
        source, flags = place, SOURCE
    with kept_signals():
        with nogil:
            status = fi.getinfo(api_version, source, NULL, flags, hints, &info)
    fi.freeinfo(hints)
    check(status, "fi_getinfo")
    return info


cdef int check(ssize_t status, str call) except -1:
    """Raise an error if the status that `call` returned is one."""
    if status >= 0:
        return 0
    text = fi.strerror(<int> -status).decode("utf-8", "replace")
    raise OSError(<int> -status, f"libfabric: {call}: {text}")
