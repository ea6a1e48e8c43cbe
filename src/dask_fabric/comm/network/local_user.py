"""Who is at the other end of a TCP connection within this host, by the kernel (sock_diag(7))."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct

from dask_fabric.paths.credentials import is_trusted
from dask_fabric.wire.hello import Hello

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_MESSAGE = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, sender
_REQUEST = struct.Struct("=BBBxI")  # inet_diag_req_v2: family, protocol, extensions, states
_SOCKET = struct.Struct("!HH16s16s")  # inet_diag_sockid: ports and addresses, source first
_SOCKET_END = struct.Struct("=I8s")  # interface, cookie
_ANY_COOKIE = b"\xff" * 8
_ANY_STATE = 0xFFFFFFFF
_OWNER = struct.Struct("=II")  # its user, and its inode
_OWNER_OFFSET = _MESSAGE.size + 4 + _SOCKET.size + _SOCKET_END.size + 12  # in an inet_diag_msg
_ANSWER_BYTES = 4096
OTHER_SERVER = (
    "this process talks to processes of its own user only on this host (fabric.auth.local in its "
    "configuration), and the server is of another"
)
_MAPPED = "::ffff:"  # an IPv4 address of an IPv6 socket


def refuse_other_users(_: Hello) -> str:
    """Refuse a client of this host that is of another user."""
    return (
        "this server accepts processes of its own user only from this host (fabric.auth.local in "
        "its configuration)"
    )


def is_of_another_user(sock: socket.socket) -> bool:
    """Whether the peer of a TCP connection is on this host, and of another user.

    The user is that of the process that made the peer's socket; root may always connect. A peer
    that is gone counts as another user's.
    """
    with contextlib.suppress(OSError):
        here, there = sock.getsockname(), sock.getpeername()
        if not _is_of_this_host(sock.family, there):
            return False
        uid = _owner(sock.family, there, here)
        return uid is None or not is_trusted(uid)
    return True


def _is_of_this_host(family: int, sockname: tuple) -> bool:
    """Whether an address is one of this host, in this network namespace."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((sockname[0], 0, *sockname[2:]))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def _owner(family: int, source: tuple, target: tuple) -> int | None:
    """Give the user of the socket that is connected from *source* to *target*, or None."""
    hosts = [name[0].partition("%")[0] for name in (source, target)]
    if all(host.startswith(_MAPPED) for host in hosts):
        family, hosts = socket.AF_INET, [host.removeprefix(_MAPPED) for host in hosts]
    packed = [socket.inet_pton(family, host).ljust(16, b"\0") for host in hosts]
    interface = source[3] if len(source) == 4 else 0
    request = (
        _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _ANY_STATE)
        + _SOCKET.pack(source[1], target[1], *packed)
        + _SOCKET_END.pack(interface, _ANY_COOKIE)
    )
    header = _MESSAGE.pack(_MESSAGE.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    with contextlib.suppress(OSError), _netlink() as asking:
        asking.send(header + request)
        answer = asking.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT)  # the kernel has answered by now
        if _MESSAGE.unpack_from(answer)[1] == _SOCK_DIAG_BY_FAMILY:
            uid, inode = _OWNER.unpack_from(answer, _OWNER_OFFSET)
            # Of a socket that no process has any more, the kernel says that it is root's.
            return uid if inode else None
    return None


def _netlink() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    return socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)
