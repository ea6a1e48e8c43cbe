"""Dask's own handshake: the first message of each side, after our hello.

It is parsed strictly: nothing is unpickled or imported, and the type of each value is checked.
"""

from __future__ import annotations

import functools
from typing import Any

from dask_fabric.errors import ProtocolError
from dask_fabric.wire.hello import unpack_map
from dask_fabric.wire.records import violation

BYTES_LIMIT = 4096  # distributed sends about 50
_TYPES = {"compression": (str, bool, type(None)), "python": (tuple,), "pickle-protocol": (int,)}


def decode(header: bytes | memoryview, frames: list) -> dict[str, Any]:
    """Return the handshake that a message holds.

    Raises
    ------
    ProtocolError
        The message is not a valid handshake.
    """
    if frames or len(header) > BYTES_LIMIT:
        raise violation("a first message that is too large for Dask's handshake")
    return dict(_decode(bytes(header)))


# Most peers send the same handshake.
@functools.lru_cache(maxsize=16)
def _decode(header: bytes) -> dict[str, Any]:
    try:
        content = unpack_map(header, "Dask's handshake")
    except ProtocolError as exc:
        raise violation(str(exc)) from exc
    found = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
    for key, types in _TYPES.items():
        if key not in found:
            raise violation(f"Dask's handshake lacks {key!r}: are both sides of the same version?")
        if type(found[key]) not in types:
            raise violation(f"{key!r} in Dask's handshake is invalid: {found[key]!r:.80}")
    return found
