"""Who is at the other end of a Unix socket, by the kernel."""

from __future__ import annotations

import os
import socket
import struct

ROOT = 0
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Return process, user and group that connected, or that listen, as this process sees them."""
    return _CREDENTIALS.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )


def is_trusted(uid: int) -> bool:
    """Whether a user may read this process's memory anyway: its own, and root."""
    return uid in (os.geteuid(), ROOT)
