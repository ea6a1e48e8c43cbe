"""The exchange of descriptors between processes of a host, by which they map each other's memory.

Theory of operation
-------------------
Each process has one exchange: a Unix socket with an abstract name (unix(7)) that is made from the
process's id, and a thread. To map memory of a peer, a process *attaches* to it: it connects, sends
its own id and a descriptor of its table of claims, and receives descriptors of the peer's memory
file and of the table of its slabs, all of them read-only (SCM_RIGHTS). This needs no permission to
trace the peer, and no common PID namespace: only the network namespace must be the same.

The connection then stays open and silent. Its end means that the peer has ended, and so have its
forked children, which have copies of it: then the claims of a client are void.

Both sides ask the kernel for the other's user (SO_PEERCRED), and trust their own and root alone:
whoever is that user may read this process's memory anyway.
"""

from __future__ import annotations

import _thread
import array
import contextlib
import errno
import itertools
import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from dask_fabric.errors import UnavailableError
from dask_fabric.memory import files
from dask_fabric.paths.credentials import is_trusted, peer_credentials

logger = logging.getLogger(__name__)

_NAME = "\0dask-fabric-shm-{:016x}"
_HELLO = struct.Struct("<8sQ")
_MAGIC = b"dfshm 1\n"
_BACKLOG = 1024
_CLIENT_LIMIT = 4096
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_SECONDS = 1.0
_TEND_SECONDS = 0.1


class Exchange:
    """The exchange of this process, which makes its memory file.

    Raises
    ------
    UnavailableError
        The file or the socket cannot be had; the message says why.
    """

    def __init__(self) -> None:
        self.id = files.open_file_of_process()
        self._attaching: dict[int, socket.socket] = {}
        self._keys = itertools.count(1)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._resume_at = 0.0  # when clients are accepted again, if they are not
        self._gone: set[int] = set()  # processes whose file is still to be freed
        self._selector = selectors.DefaultSelector()
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            for fd in files.descriptors():  # /proc may not be mounted
                os.close(fd)
            self._listening.bind(_NAME.format(self.id))
            self._listening.listen(_BACKLOG)
        except OSError as error:
            self._listening.close()
            raise UnavailableError(f"descriptors cannot be exchanged here: {error}") from error
        self._watch(self._listening, self._accept)
        # Not a `threading.Thread`: test suites, distributed's too, take one for a leak.
        _thread.start_new_thread(self._serve, ())

    # ---- for any thread

    def attach(self, peer: int) -> str:
        """Begin to attach to a process; `files.has_origin` tells when that is done.

        Never waits.

        Returns
        -------
        str
            The reason why that is not possible, or "".
        """
        with self._lock:
            if peer in self._attaching or files.has_origin(peer):
                return ""
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            try:
                sock.connect(_NAME.format(peer))
                if not is_trusted(peer_credentials(sock)[1]):
                    raise PermissionError("it belongs to another user")
                claims, theirs = files.new_claims()
                try:
                    socket.send_fds(sock, [_HELLO.pack(_MAGIC, self.id)], [theirs])
                except OSError:
                    os.close(claims)
                    raise
                finally:
                    os.close(theirs)
            except OSError as error:
                sock.close()
                return (
                    "its memory file cannot be had: another network namespace, or a process that "
                    f"has ended ({error})"
                )
            self._attaching[peer] = sock
        self._watch(sock, lambda: self._answered(sock, peer, claims))
        return ""

    # ---- the thread

    def _serve(self) -> None:
        while True:
            is_waiting = self._resume_at or self._gone
            events = self._selector.select(_TEND_SECONDS if is_waiting else None)
            if self._resume_at and time.monotonic() >= self._resume_at:
                self._resume_at = 0.0
                self._selector.register(self._listening, selectors.EVENT_READ, self._accept)
            self._gone = {peer for peer in self._gone if not files.free_rest(peer)}
            for key, _ in events:
                try:
                    key.data()
                except Exception:
                    logger.exception("The exchange of memory files failed")

    def _watch(self, sock: socket.socket, act: Callable[[], Any]) -> None:
        self._connections.add(sock)
        self._selector.register(sock, selectors.EVENT_READ, act)

    def _watch_instead(self, sock: socket.socket, act: Callable[[], Any]) -> None:
        self._selector.modify(sock, selectors.EVENT_READ, act)

    def _close(self, sock: socket.socket) -> None:
        self._connections.discard(sock)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        sock.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:  # the client stays in the queue, and is seen at once
                logger.warning("No process can attach to this one for now: %s", error)
                self._resume_at = time.monotonic() + _PAUSE_SECONDS
                self._selector.unregister(self._listening)
            return
        sock.setblocking(False)
        if not is_trusted(peer_credentials(sock)[1]) or len(self._connections) > _CLIENT_LIMIT:
            sock.close()
            return
        self._watch(sock, lambda: self._greeted(sock))

    def _greeted(self, sock: socket.socket) -> None:
        """A client has said who it is."""
        received = _received(sock, 1)
        try:
            if received is None:
                raise ValueError("nothing was said")
            data, fds = received
            magic, peer = _HELLO.unpack(data)
            if magic != _MAGIC or len(fds) != 1:
                raise ValueError("another version")
            key = next(self._keys)
            files.add_client(key, peer, fds[0])
        except (ValueError, struct.error, OSError, MemoryError) as error:
            logger.debug("A client of the exchange was refused: %s", error)
            self._close(sock)
            return
        finally:
            _close_all(received)
        try:
            ours = files.descriptors()
            try:
                socket.send_fds(sock, [_MAGIC], ours)
            finally:
                for fd in ours:
                    os.close(fd)
        except OSError:
            self._ended(sock, key)
            return
        self._watch_instead(sock, lambda: self._ended(sock, key))

    def _ended(self, sock: socket.socket, key: int) -> None:
        """A client is gone, or breaks the protocol, which is the same."""
        files.remove_client(key)
        self._close(sock)

    def _answered(self, sock: socket.socket, peer: int, claims: int) -> None:
        """A process has sent descriptors of its memory file, or refuses."""
        received = _received(sock, 2)
        try:
            if received is None or received[0] != _MAGIC or len(received[1]) != 2:
                raise ValueError("it was refused")
            memory, table = received[1]
            files.add_origin(peer, memory, table, claims)
        except (ValueError, OSError, MemoryError) as error:
            logger.debug("A memory file cannot be had: %s", error)
            self._close(sock)
        else:
            self._watch_instead(sock, lambda: self._lost(sock, peer))
        finally:
            _close_all(received)
            os.close(claims)
            with self._lock:
                self._attaching.pop(peer, None)

    def _lost(self, sock: socket.socket, peer: int) -> None:
        """A process that this one is attached to is gone; what is mapped of it stays."""
        files.remove_origin(peer)
        self._gone.add(peer)
        self._close(sock)

    # ---- forks

    def forked(self) -> None:
        """In a child: stop to listen, and keep the connections open, for what is mapped by them."""
        self._listening.close()
        _inherited.append(self)


def _received(sock: socket.socket, most: int) -> tuple[bytes, list[int]] | None:
    """Give a message and its descriptors; None at the end."""
    fds = array.array("i")
    try:
        # Not `socket.recv_fds`: it ignores flags, and programs started meanwhile get what arrives.
        data, controls, _, _ = sock.recvmsg(
            64, socket.CMSG_LEN(most * fds.itemsize), socket.MSG_CMSG_CLOEXEC
        )
    except OSError:
        return None
    for level, kind, content in controls:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
    return (data, list(fds)) if data or fds else None


def _close_all(received: tuple[bytes, list[int]] | None) -> None:
    for fd in received[1] if received else ():
        os.close(fd)


_inherited: list[Exchange] = []
_exchange: Exchange | None = None
_making = threading.Lock()


def of_process() -> Exchange:
    """Give the exchange of this process, made at the first call.

    Raises
    ------
    UnavailableError
        As `Exchange`.
    """
    global _exchange
    if _exchange is None:
        with _making:
            if _exchange is None:
                _exchange = Exchange()
    return _exchange


def _after_fork_in_child() -> None:
    global _exchange, _making
    _making = threading.Lock()
    if _exchange is not None:
        _exchange.forked()
        _exchange = None


os.register_at_fork(after_in_child=_after_fork_in_child)
