"""Failed attempts to connect, by address: each reason is logged once, hopeless retries slow down.

Dask's workers retry to register about nine times a second and never log why they fail: the reason
is in an exception that Dask does not show.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass, field

from distributed.comm.core import FatalCommClosedError

from dask_fabric.wire.text import one_line

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 1.0  # a server that sends nothing for so long is worth a log line
_PASSING_SECONDS = 1.0  # shorter trouble is not logged: a server that shuts down causes it too
_FORGET_SECONDS = 60.0
_ADDRESS_LIMIT = 256
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0


@dataclass
class _Trouble:
    """The history of an address to which connecting has failed."""

    logged: set[str] = field(default_factory=set)  # kinds of errors; few, whatever a server sends
    began_at: float = -math.inf
    last_at: float = -math.inf
    pause_seconds: float = 0.0
    next_at: float = 0.0


class Attempts:
    """The failed attempts of one connector, by address."""

    def __init__(self) -> None:
        self._troubles: dict[str, _Trouble] = {}

    async def pause(self, address: str) -> None:
        """Wait before another attempt at an address whose last error was fatal."""
        trouble = self._troubles.get(address)
        if trouble is not None and (seconds := trouble.next_at - time.monotonic()) > 0:
            await asyncio.sleep(seconds)

    def succeeded(self, address: str) -> None:
        """Forget the failures of *address*."""
        self._troubles.pop(address, None)

    def failed(self, address: str, error: Exception) -> None:
        """Record the error of a server that was reached."""
        trouble = self._trouble(address)
        is_lasting = isinstance(error, FatalCommClosedError)
        if is_lasting:
            longer = max(_FIRST_PAUSE_SECONDS, 2 * trouble.pause_seconds)
            trouble.pause_seconds = min(longer, _LONGEST_PAUSE_SECONDS)
            trouble.next_at = trouble.last_at + trouble.pause_seconds
        if is_lasting or trouble.last_at - trouble.began_at >= _PASSING_SECONDS:
            kind = type(error.__cause__ or error).__name__
            reason = str(error).removeprefix(f"in {address}: ")
            self._log_once(trouble, kind, f"Cannot connect to {address}: {reason}")

    def silent(self, address: str, seconds: float) -> None:
        """Record that a server accepted a connection, but sent nothing until Dask gave up."""
        if seconds >= SILENCE_SECONDS:
            scheme = address.partition("://")[0]
            text = (
                f"Connected to {address}, but it sent nothing for {seconds:.1f} s: is it a "
                f"listener of {scheme}:// at all (check scheme and port), or too busy to answer?"
            )
            self._log_once(self._trouble(address), "silence", text)

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

    def _log_once(self, trouble: _Trouble, kind: str, text: str) -> None:
        if kind not in trouble.logged:
            trouble.logged.add(kind)
            logger.warning("%s", one_line(text))
