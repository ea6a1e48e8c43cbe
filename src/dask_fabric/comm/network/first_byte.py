"""The first byte of a connection, looked at before it is decided what will read it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable


class Arrival:
    """An accepted connection that has not said anything yet.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        The running loop.
    sock : socket.socket
        Connected and non-blocking; belongs to *said* in the end, or is closed.
    timeout_seconds : float
        How long it may keep silent.
    said : callable
        Called once, with this object, the socket, and the first byte (which stays to be read) or
        the `OSError` for which there is none.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        timeout_seconds: float,
        said: Callable[[Arrival, socket.socket, bytes | OSError], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._said = said
        silence = TimeoutError(f"no handshake within {timeout_seconds} seconds")
        self._timer = loop.call_later(timeout_seconds, self._end, silence)
        loop.add_reader(sock, self._look)

    def abort(self) -> None:
        """Close the connection; *said* is not called."""
        self._release()
        self._sock.close()

    def forked(self) -> None:
        """In a forked child: close its copy, and leave the loop, which is the parent's, alone."""
        self._sock.close()

    def _look(self) -> None:
        try:
            first = self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._end(exc)
            return
        self._end(first or ConnectionResetError("the client closed the connection"))

    def _end(self, outcome: bytes | OSError) -> None:
        self._release()
        self._said(self, self._sock, outcome)

    def _release(self) -> None:
        self._timer.cancel()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._sock)
