"""A path whose frames are in a dictionary, by token."""

from __future__ import annotations

import errno
import struct

from dask_fabric.paths.python_path import PythonPath

from .wire import Violation

TOKEN = struct.Struct("<Q")
GARBAGE = b"\xdd" * 64


def spoil(memory) -> None:
    """Overwrite the beginning, the middle and the end of memory; all of it would take longer."""
    nbytes = len(memory)
    for at in (0, nbytes // 2, nbytes - len(GARBAGE)):
        memory[at : at + len(GARBAGE)] = GARBAGE


class FakePath(PythonPath):
    """One node's end of a path; the world moves its frames.

    Parameters
    ----------
    node : Node
    number, least_bytes : int
    """

    def __init__(self, node, number: int, least_bytes: int) -> None:
        super().__init__(None, f"fake{number}", number, TOKEN.size, least_bytes)
        self.node = node

    def describe_frame(self, memory: memoryview) -> bytes:
        return TOKEN.pack(self.node.memory.offer(memory))

    def release_frame(self, descriptor: bytes) -> None:
        self.node.memory.release(TOKEN.unpack(descriptor)[0])


class Memory:
    """The memory of the frames that one node sends.

    Released memory is overwritten at once, so that the receiver sees a release that is a step too
    early.
    """

    def __init__(self, node) -> None:
        self.node = node
        self.kept: list[bytearray] = []  # all of it, so that nothing reads freed memory
        self.offered: dict[int, memoryview] = {}  # by token
        self.released: dict[int, memoryview] = {}
        self.message_of: dict[int, int] = {}
        self.offered_bytes = 0
        self.is_dead = False

    def offer(self, memory: memoryview) -> int:
        """Keep a frame until it is released, and give its token."""
        token = len(self.message_of) + 1
        self.offered[token] = memory
        self.message_of[token] = self.node.sending
        self.offered_bytes += memory.nbytes
        return token

    def release(self, token: int) -> None:
        memory = self.offered.pop(token, None)
        node = self.node
        if memory is None:
            node.world.complain(f"frame {token} of {node.name} is released twice")
            return
        was_answered = self.message_of[token] in node.incoming.transcript.answered
        if not was_answered and not node.out.seems_ended():
            node.world.complain(f"{node.name} releases a frame that the peer may still fetch")
        self.released[token] = memory
        self.offered_bytes -= memory.nbytes

    def forget(self) -> None:
        """Free everything, after the simulation."""
        self.node = None
        self.kept.clear()
        self.offered.clear()
        self.released.clear()

    def fetch(self, token: int, into: memoryview) -> int:
        """Copy a frame, as the peer does, and give an errno or 0."""
        if self.is_dead:
            return errno.ESRCH
        memory = self.offered.get(token)
        if memory is None:  # it may have another owner by now
            if token not in self.released:
                raise Violation(f"frame {token} of {self.node.name} is fetched: there is none")
            spoil(into)
        else:
            into[:] = memory
        return 0
