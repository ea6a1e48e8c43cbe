"""Sums of traffic by peer and path."""

from __future__ import annotations

from collections import Counter

from dask_fabric.wire.metrics import Metrics

PEER_LIMIT = 256  # pairs without an open comm that are kept apart
OTHER_PEERS = "other"

Key = tuple[str, str]  # peer and path
Totals = dict[Key, Metrics]


class Sums:
    """The traffic of comms, by peer and path. Not thread-safe."""

    def __init__(self) -> None:
        self._totals: Totals = {}
        self._open_counts: Counter[Key] = Counter()
        self._idle: dict[Key, None] = {}  # without an open comm, in LRU order

    def opened(self, key: Key) -> None:
        """Count one more open comm."""
        self._open_counts[key] += 1
        self._idle.pop(key, None)
        self._total(key)

    def closed(self, key: Key, was_counted: bool) -> None:
        """Count a closed comm; *was_counted* if `opened` was called for it."""
        count = self._open_counts.get(key, 0) - was_counted
        if count > 0:
            self._open_counts[key] = count
            return
        self._open_counts.pop(key, None)
        self._idle.pop(key, None)
        self._idle[key] = None
        while len(self._idle) > PEER_LIMIT:
            self._forget(next(iter(self._idle)))

    def add(self, key: Key, figures: Metrics) -> None:
        """Add new traffic of a comm."""
        self._total(key).add(figures)

    def open_count(self, key: Key) -> int:
        """How many comms are open."""
        return self._open_counts[key]

    def totals(self, limit: int) -> Totals:
        """Give copies for the busiest *limit* pairs; the rest is summed up under one peer."""
        keys = list(self._totals)
        if len(keys) > limit:
            keys.sort(key=self._nbytes, reverse=True)
        found = {key: self._totals[key].copy() for key in keys[:limit]}
        for key in keys[limit:]:
            found.setdefault((OTHER_PEERS, key[1]), Metrics()).add(self._totals[key])
        return found

    def _total(self, key: Key) -> Metrics:
        total = self._totals.get(key)
        if total is None:
            total = self._totals[key] = Metrics()
        return total

    def _forget(self, key: Key) -> None:
        """Move the least recently used peer into the sum of others."""
        del self._idle[key]
        figures = self._totals.pop(key, None) or Metrics()
        self._total((OTHER_PEERS, key[1])).add(figures)

    def _nbytes(self, key: Key) -> int:
        sent, received, *_ = self._totals[key].brief()
        return sent + received
