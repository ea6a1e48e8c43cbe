"""Kernel options of a comm's TCP socket, the same as distributed's own comms have."""

from __future__ import annotations

import functools
import logging
import socket

import dask
from dask.utils import parse_timedelta

logger = logging.getLogger(__name__)

_PROBE_COUNT = 10


def tune(sock: socket.socket) -> None:
    """Set TCP_NODELAY, keepalive and user timeout on *sock*.

    Accepted sockets inherit all of them from the listening one, so a listener sets them once.
    The timeout is ``distributed.comm.timeouts.tcp``, split as distributed splits it.
    """
    try:
        for level, option, value in _options(dask.config.get("distributed.comm.timeouts.tcp")):
            sock.setsockopt(level, option, value)
    except OSError:
        logger.exception("Could not set the TCP options of %s", sock)


@functools.lru_cache(maxsize=8)
def _options(timeout: str | float) -> tuple[tuple[int, int, int], ...]:
    """Give ``(level, option, value)`` of each option.

    Raises
    ------
    ValueError
        The timeout is too short for the probes.
    """
    timeout_seconds = int(parse_timedelta(timeout, default="seconds"))
    if timeout_seconds <= _PROBE_COUNT:
        raise ValueError(
            f"distributed.comm.timeouts.tcp is {timeout!r}; it must be above {_PROBE_COUNT} seconds"
        )
    idle_seconds = max(2, timeout_seconds // 4)
    interval_seconds = max(1, (timeout_seconds - idle_seconds) // _PROBE_COUNT)
    idle_seconds = timeout_seconds - interval_seconds * _PROBE_COUNT
    return (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBE_COUNT),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_seconds),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval_seconds),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_seconds * 1000),
    )
