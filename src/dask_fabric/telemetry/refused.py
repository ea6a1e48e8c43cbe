"""How often this process has refused something of its peers, or they would have refused it."""

from __future__ import annotations

import os
import threading

CONNECTION = "connection"  # in the handshake: no key, no hello in time, another program, too many
COMM = "comm"  # closed, because the peer broke the protocol
MESSAGE = "message"  # not sent, because it is larger than the peer accepts
STALLED = "stalled comm"  # closed, because the peer sent or took nothing for too long

_counts = dict.fromkeys((CONNECTION, COMM, MESSAGE, STALLED), 0)
_lock = threading.Lock()  # loops of several threads count


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    _counts.update(dict.fromkeys(_counts, 0))


os.register_at_fork(after_in_child=_after_fork_in_child)


def add(what: str) -> None:
    """Count one more."""
    with _lock:
        _counts[what] += 1


def counts() -> dict[str, int]:
    """Give how many there were since the process began, of each kind."""
    with _lock:
        return dict(_counts)
