"""What the kernel knows of a TCP connection: ``TCP_INFO``."""

from __future__ import annotations

import struct

# From linux/tcp.h: offset, format and unit of what is told; older kernels give less of it.
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
    """Give by name what a ``struct tcp_info`` holds; fields that it lacks are left out.

    Parameters
    ----------
    data : bytes
        As ``getsockopt`` gave it; empty where there is none.
    """
    told = {}
    for name, (offset, kind, divisor) in _FIELDS.items():
        if offset + struct.calcsize(kind) <= len(data):
            (value,) = struct.unpack_from(kind, data, offset)
            told[name] = value if divisor is None else value / divisor
    return told
