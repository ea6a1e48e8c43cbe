"""The kernel's figures of a TCP connection: ``TCP_INFO``."""

from __future__ import annotations

import struct

# From linux/tcp.h: offset, format and unit. Older kernels return a shorter structure.
_FIELDS = {
    "rtt_seconds": (68, "I", 1e6),
    "min_rtt_seconds": (148, "I", 1e6),
    "delivery_bytes_per_second": (160, "Q", None),
    "busy_seconds": (168, "Q", 1e6),
    "peer_window_full_seconds": (176, "Q", 1e6),
    "send_buffer_full_seconds": (184, "Q", 1e6),
    "bytes_sent": (200, "Q", None),
    "bytes_retransmitted": (208, "Q", None),
    "bytes_acknowledged": (120, "Q", None),
    "bytes_received": (128, "Q", None),
}


def parse_tcp_info(data: bytes) -> dict[str, float]:
    """Parse a ``struct tcp_info`` into a dict; fields beyond its end are left out.

    Parameters
    ----------
    data : bytes
        From ``getsockopt``; may be empty.
    """
    values = {}
    for name, (offset, kind, divisor) in _FIELDS.items():
        if offset + struct.calcsize(kind) <= len(data):
            (value,) = struct.unpack_from(kind, data, offset)
            values[name] = value if divisor is None else value / divisor
    return values
