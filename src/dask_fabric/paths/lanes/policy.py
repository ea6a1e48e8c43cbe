"""How many lanes pay to one peer: found out by measuring, without I/O and without a clock."""

from __future__ import annotations

import statistics

LEAST_BYTES = 8 << 20  # smaller transfers say little about the speed of a connection
_ENOUGH_BYTES = 48 << 20  # measured at one number of lanes, in transfers
_ENOUGH_COUNT = 3  # as many, unless one is
_LARGE_BYTES = 64 << 20  # this large
GAIN = 1.25  # the least by which more lanes must be faster


class Policy:
    """Tries 2, 4 and 8 lanes in turn, and keeps the last number that paid.

    Parameters
    ----------
    most : int
        The most lanes that may be used.

    Attributes
    ----------
    count : int
        How many lanes to use now; 1 is the stream alone.
    is_settled : bool
        Whether `count` is final.
    rates : list of float
        Bytes per second with 1 lane, and with each number that paid.
    """

    def __init__(self, most: int) -> None:
        self._steps = [*(step for step in (1, 2, 4, 8) if step < most), most]
        self._index = 0
        self._samples: list[tuple[int, float]] = []
        self._is_fresh = False  # new lanes are slow at first
        self.rates: list[float] = []
        self.is_settled = most < 2

    @property
    def count(self) -> int:
        return self._steps[self._index]

    def paid(self) -> list[tuple[int, float]]:
        """Give each number of lanes that paid, with its rate."""
        return list(zip(self._steps, self.rates))  # noqa: B905 (the other steps were not tried)

    def moved(self, nbytes: int, seconds: float, count: int) -> None:
        """Note a transfer of *nbytes*, which took *seconds* with *count* lanes."""
        if self.is_settled or count != self.count or nbytes < LEAST_BYTES or seconds <= 0:
            return
        is_fresh, self._is_fresh = self._is_fresh, False
        if is_fresh and nbytes < _LARGE_BYTES:
            return
        self._samples.append((nbytes, seconds))
        total_bytes = sum(nbytes for nbytes, _ in self._samples)
        is_enough = len(self._samples) >= _ENOUGH_COUNT and total_bytes >= _ENOUGH_BYTES
        if is_enough or nbytes >= _LARGE_BYTES:
            self._decide(statistics.median(nbytes / seconds for nbytes, seconds in self._samples))

    def give_up(self) -> None:
        """More lanes cannot be opened: keep what paid so far."""
        if not self.is_settled:
            self._index = max(0, len(self.rates) - 1)
            self.is_settled = True

    def _decide(self, rate: float) -> None:
        self._samples = []
        if self.rates and rate < GAIN * self.rates[-1]:
            self.give_up()
            return
        self.rates.append(rate)
        if self._index + 1 == len(self._steps):
            self.is_settled = True
        else:
            self._index += 1
            self._is_fresh = True
