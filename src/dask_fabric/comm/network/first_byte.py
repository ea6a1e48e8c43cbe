"""Peeking at the first byte of a connection, to decide whether TLS reads it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable


class Arrival:
    """An accepted connection that has not sent anything yet.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        The running loop.
    sock : socket.socket
        Connected and non-blocking; passed on to *on_first_byte*, or closed by `abort`.
    timeout_seconds : float
        How long the client may stay silent.
    on_first_byte : callable
        Called once, with this object, the socket, and the first byte (left in the socket) or the
        `OSError` that occurred instead.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        timeout_seconds: float,
        on_first_byte: Callable[[Arrival, socket.socket, bytes | OSError], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._on_first_byte = on_first_byte
        silence = TimeoutError(f"no handshake within {timeout_seconds} seconds")
        self._timer = loop.call_later(timeout_seconds, self._end, silence)
        loop.add_reader(sock, self._look)

    def abort(self, error: OSError | None = None) -> None:
        """Close the connection, without a call of *on_first_byte* unless there is an *error*."""
        if error is not None:
            self._end(error)
            return
        self._release()
        self._sock.close()

    def forked(self) -> None:
        """In a forked child: close the copy of the socket, but leave the parent's loop alone."""
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
        self._on_first_byte(self, self._sock, outcome)

    def _release(self) -> None:
        self._timer.cancel()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._sock)
