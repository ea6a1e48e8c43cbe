"""Shared memory: the exchange of descriptors, and where a peer says that its frames lie."""

from __future__ import annotations

import functools
import itertools
import os
import selectors
import socket
import struct
import threading

from dask_fabric.memory import arrays, files, sealed
from dask_fabric.paths.shm.exchange import _HELLO, _MAGIC, Exchange

from ..pieces import Input
from ..registry import target

_HOSTILE = 5  # the id of a process whose table of slabs is the input
_FILE_BYTES, _TABLE_BYTES = 1 << 50, 1 << 21
_RECORD = struct.Struct("<IIQQQ")
_PLACE = struct.Struct("<IIQQ")


@functools.cache
def _origins() -> tuple[int, int]:
    """Be a peer of ourselves, and of a process that writes anything into its table."""
    own = files.open_file_of_process()
    files.configure(is_enabled=True, threshold_bytes=1 << 20, most_bytes=1 << 26)
    _origins.kept = arrays.new_array(1 << 20)
    claims, theirs = files.new_claims()
    files.add_client(1, own, theirs)
    files.add_origin(own, *files.descriptors(), claims)
    hostile_file, table = sealed.make({"file": _FILE_BYTES, "table": _TABLE_BYTES})
    hostile_claims, _ = files.new_claims()
    files.add_origin(_HOSTILE, hostile_file, table, hostile_claims)
    return own, table


@target(
    [
        bytes([choice]) + _PLACE.pack(slab, generation, offset, nbytes) + record
        for choice in (0, 1)
        for slab, generation, offset, nbytes in ((1, 0, 0, 1 << 16), (2, 1, 4095, 70_000))
        for record in (_RECORD.pack(0, 0, 0, 1 << 20, 0), _RECORD.pack(1, 0, 1 << 49, 1 << 21, 0))
    ]
)
def shm_place(data: bytes) -> None:
    """A frame in a peer's memory file: where it says that it lies, and what its table says."""
    own, table = _origins()
    given = Input(data)
    choice = given.number()
    slab, generation, offset, nbytes = _PLACE.unpack(
        given.raw(_PLACE.size).ljust(_PLACE.size, b"\0")
    )
    record = given.raw(_RECORD.size).ljust(_RECORD.size, b"\0")
    os.pwrite(table, record, slab % (1 << 16) * _RECORD.size)
    origin = (own, _HOSTILE, given.number(8))[choice % 3]
    assert files.try_place(origin, slab, generation, offset, nbytes) in range(4)


class Attacked(Exchange):
    """An exchange without its thread: a target calls what that would call."""

    def __init__(self) -> None:
        self.id = _origins()[0]
        self._attaching, self._gone, self._connections = {}, set(), set()
        self._keys, self._lock = itertools.count(2), threading.Lock()
        self._selector = selectors.DefaultSelector()


@functools.cache
def _descriptors() -> list[int]:
    """Give what a peer may pass, from what is wanted to what is not."""
    right = sealed.make({"file": _FILE_BYTES, "table": _TABLE_BYTES, "claims": 1 << 18})
    small = sealed.make({"small": 4096})
    unsealed = os.memfd_create("unsealed")
    os.ftruncate(unsealed, 1 << 18)
    return [*right, *small, unsealed, os.open("/dev/null", os.O_RDWR), *os.pipe()]


@target(
    [
        b"\0\1\2" + _HELLO.pack(_MAGIC, 7),
        b"\1\2\0\1" + _MAGIC,
        b"\0\0" + _HELLO.pack(_MAGIC, 7),
        b"\1\0",
    ]
)
def shm_exchange(data: bytes) -> None:
    """What a process says and passes that attaches to this one, or that this one attaches to."""
    given = Input(data)
    attacked, is_server = Attacked(), not given.number() & 1
    count = given.number() % 4
    passed = [_descriptors()[given.number() % len(_descriptors())] for _ in range(count)]
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far.setblocking(False)
    attacked._watch(far, lambda: None)
    if text := given.rest()[:200]:
        socket.send_fds(near, [text], passed)
    near.close()
    if is_server:
        attacked._greeted(far)
        key = next(attacked._keys) - 1
        if far in attacked._connections:
            attacked._ended(far, key)
    else:
        claims, theirs = files.new_claims()
        os.close(theirs)
        attacked._answered(far, 6, claims)
        if far in attacked._connections:
            attacked._lost(far, 6)
            files.free_rest(6)
    assert not attacked._connections
    attacked._selector.close()
