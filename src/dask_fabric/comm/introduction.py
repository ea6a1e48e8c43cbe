"""Dask's own handshake, which follows ours: the first message of each side, read strictly.

Nobody has proven anything yet, so nothing is unpickled, imported or trusted for its type.
"""

from __future__ import annotations

from typing import Any

from distributed.comm.core import CommClosedError

from dask_fabric.comm.comm import FabricComm
from dask_fabric.errors import ProtocolError
from dask_fabric.wire.hello import unpack_map
from dask_fabric.wire.records import violation

_BYTES_LIMIT = 4096  # distributed sends about 50
_TYPES = {"compression": (str, bool, type(None)), "python": (tuple,), "pickle-protocol": (int,)}


class NewComm(FabricComm):
    """A comm that has not read Dask's handshake; it becomes a `FabricComm` when it has."""

    async def read(self, deserializers: Any = None) -> dict[str, Any]:
        """Read the peer's side of Dask's handshake.

        Raises
        ------
        CommClosedError
            The comm is closed, or what came is not such a handshake.
        """
        try:
            message = self._receive_nowait()
            if message is None:
                message = await self._channel.receive()
            handshake = decode(*message)
        except ProtocolError as exc:  # which the listener logs
            self._channel.abort(exc)
            raise CommClosedError(f"in {self}: {exc}") from exc
        except BaseException as exc:
            self._end(exc)
            raise
        self.__class__ = FabricComm
        return handshake


def decode(header: bytes | memoryview, frames: list) -> dict[str, Any]:
    """Return the handshake that a message holds.

    Raises
    ------
    ProtocolError
        The message is something else.
    """
    if frames or len(header) > _BYTES_LIMIT:
        raise violation("a first message that is too large for Dask's handshake")
    try:
        content = unpack_map(bytes(header), "Dask's handshake")
    except ProtocolError as exc:
        raise violation(str(exc)) from exc
    found = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
    for key, types in _TYPES.items():
        if key not in found:
            raise violation(f"Dask's handshake lacks {key!r}: are both sides of the same version?")
        if type(found[key]) not in types:
            raise violation(f"{key!r} in Dask's handshake is invalid: {found[key]!r:.80}")
    return found
