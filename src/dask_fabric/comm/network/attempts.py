"""What became of connecting to each address: logged once, and tried less often where it is no use.

Dask's workers try to register again and again, about nine times a second, and never say why they
cannot: the reason stands in an exception that nobody shows.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass

from distributed.comm.core import FatalCommClosedError

from dask_fabric.wire.text import one_line

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 1.0  # from a connection until it is worth a line that nothing was said
_PASSING_SECONDS = 1.0  # a server that ends closes connections too, and is gone then
_FORGET_SECONDS = 60.0
_ADDRESS_LIMIT = 256
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0


@dataclass
class _Trouble:
    """What is known of an address to which connecting has failed."""

    kind: str = ""  # what was logged last
    began_at: float = -math.inf
    last_at: float = -math.inf
    pause_seconds: float = 0.0
    next_at: float = 0.0


class Attempts:
    """The troubles of one connector, by address."""

    def __init__(self) -> None:
        self._troubles: dict[str, _Trouble] = {}

    async def pause(self, address: str) -> None:
        """Wait before *address* is tried again that will not become a peer by itself."""
        trouble = self._troubles.get(address)
        if trouble is not None and (seconds := trouble.next_at - time.monotonic()) > 0:
            await asyncio.sleep(seconds)

    def succeeded(self, address: str) -> None:
        """Forget what was wrong with *address*."""
        self._troubles.pop(address, None)

    def failed(self, address: str, error: Exception) -> None:
        """Note what a peer, which could be reached, did wrong."""
        trouble = self._trouble(address)
        is_lasting = isinstance(error, FatalCommClosedError)
        if is_lasting:
            longer = max(_FIRST_PAUSE_SECONDS, 2 * trouble.pause_seconds)
            trouble.pause_seconds = min(longer, _LONGEST_PAUSE_SECONDS)
            trouble.next_at = trouble.last_at + trouble.pause_seconds
        if is_lasting or trouble.last_at - trouble.began_at >= _PASSING_SECONDS:
            kind = type(error.__cause__ or error).__name__
            self._tell(trouble, kind, f"Cannot connect: {error}")

    def silent(self, address: str, seconds: float) -> None:
        """Note that a server has taken a connection and said nothing until Dask gave up."""
        if seconds >= SILENCE_SECONDS:
            scheme = address.partition("://")[0]
            text = (
                f"Connected to {address}, but nothing was said there for {seconds:.1f} s: is it a "
                f"listener of {scheme}:// at all (check scheme and port), or too busy to answer?"
            )
            self._tell(self._trouble(address), "silence", text)

    def _trouble(self, address: str) -> _Trouble:
        now = time.monotonic()
        trouble = self._troubles.pop(address, None) or _Trouble()
        if now - trouble.last_at > _FORGET_SECONDS:
            trouble.began_at = now
        trouble.last_at = now
        if len(self._troubles) >= _ADDRESS_LIMIT:
            self._troubles.pop(next(iter(self._troubles)))
        self._troubles[address] = trouble
        return trouble

    def _tell(self, trouble: _Trouble, kind: str, text: str) -> None:
        if trouble.kind != kind:
            trouble.kind = kind
            logger.warning("%s", one_line(text))
