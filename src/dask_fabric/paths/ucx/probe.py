"""A program that loads one UCX library and prints its capabilities as one line of JSON.

It runs in a process of its own, because a library that does not fit this machine may print, hang or
crash. It imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys
import tempfile

# Loaded from one folder and in this order: mixing the libraries of two builds crashes.
LIBRARIES = ("libucm", "libucs", "libuct", "libucp")
SUFFIX = ".so.0"
_FEATURE_WAKEUP, _FEATURE_AM = 1 << 4, 1 << 6
_PARAM_FIELD_FEATURES = 1
_ATTR_FIELD_MEMORY_TYPES = 1 << 2
_MEMORY_TYPES = ("host", "cuda", "cuda-managed", "rocm", "rocm-managed")
_STRUCTURE_BYTES = 512  # more than any of UCX's structures that are passed here


class _SymbolInfo(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def main(path: str, seconds: str) -> None:
    """Print the version, transports and memory types of the UCX library *path*."""
    signal.alarm(int(seconds))  # ends this process even if its parent has died
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # UCX logs to the standard output
    try:
        found = describe(path)
    except Exception as exc:
        found = {"error": str(exc) or repr(exc)}
    answer.write(json.dumps(found) + "\n")
    answer.close()
    os._exit(0)  # skip the library's exit handlers


def describe(path: str) -> dict[str, object]:
    ucp = _open(path)
    version = _version(ucp)
    found: dict[str, object] = {"path": _path_of(ucp), "version": version}
    context = _new_context(ucp, version)
    found["transports"] = _transports(ucp, context)
    found["memory_types"] = _memory_types(ucp, context)
    _check(ucp, ucp.ucp_worker_create(context, _parameters({}), ctypes.byref(ctypes.c_void_p())))
    return found


def _open(path: str) -> ctypes.CDLL:
    folder = os.path.dirname(path)
    if folder:
        os.stat(path)  # else the error would name a neighbouring library
    # Lazy binding: libucm and libucs need each other.
    mode = os.RTLD_LAZY | os.RTLD_LOCAL
    for name in LIBRARIES[:-1] if folder else ():
        ctypes.CDLL(os.path.join(folder, name + SUFFIX), mode)
    return ctypes.CDLL(path, mode)


def _path_of(ucp: ctypes.CDLL) -> str:
    info = _SymbolInfo()
    function = ctypes.cast(ucp.ucp_get_version, ctypes.c_void_p)
    if not ctypes.CDLL(None).dladdr(function, ctypes.byref(info)):
        raise OSError("dladdr does not know the library")
    return os.path.realpath(os.fsdecode(info.file))


def _version(ucp: ctypes.CDLL) -> list[int]:
    parts = [ctypes.c_uint() for _ in range(3)]
    ucp.ucp_get_version(*map(ctypes.byref, parts))
    return [part.value for part in parts]


def _new_context(ucp: ctypes.CDLL, version: list[int]) -> ctypes.c_void_p:
    config, context = ctypes.c_void_p(), ctypes.c_void_p()
    parameters = _parameters({0: _PARAM_FIELD_FEATURES, 8: _FEATURE_AM | _FEATURE_WAKEUP})
    _check(ucp, ucp.ucp_config_read(None, None, ctypes.byref(config)))
    major, minor = version[:2]
    status = ucp.ucp_init_version(major, minor, parameters, config, ctypes.byref(context))
    _check(ucp, status)
    return context


def _transports(ucp: ctypes.CDLL, context: ctypes.c_void_p) -> list[str]:
    """Give transport and device of each `resource` line; other lines also appear without device."""
    libc = ctypes.CDLL(None)
    libc.fdopen.restype = ctypes.c_void_p
    with tempfile.TemporaryFile() as file:
        stream = ctypes.c_void_p(libc.fdopen(os.dup(file.fileno()), b"w"))
        ucp.ucp_context_print_info(context, stream)
        libc.fclose(stream)
        file.seek(0)
        lines = file.read().decode(errors="replace").splitlines()
    return [line.split()[-1] for line in lines if line.lstrip("# ").startswith("resource ")]


def _memory_types(ucp: ctypes.CDLL, context: ctypes.c_void_p) -> list[str]:
    attributes = _parameters({0: _ATTR_FIELD_MEMORY_TYPES})
    _check(ucp, ucp.ucp_context_query(context, attributes))
    mask = int.from_bytes(attributes[24:32], "little")
    return [name for bit, name in enumerate(_MEMORY_TYPES) if mask >> bit & 1]


def _parameters(values: dict[int, int]) -> ctypes.Array:
    """Make a structure of zeros, except for 64-bit *values* by offset."""
    structure = ctypes.create_string_buffer(_STRUCTURE_BYTES)
    for offset, value in values.items():
        struct.pack_into("<Q", structure, offset, value)
    return structure


def _check(ucp: ctypes.CDLL, status: int) -> None:
    if status != 0:
        text = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)
        name = ctypes.cast(ucp.ucs_status_string, text)(status)
        raise OSError(f"UCX: {name.decode(errors='replace')}")


if __name__ == "__main__":
    main(*sys.argv[1:])
