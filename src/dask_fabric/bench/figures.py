"""The scenarios between two processes: their figures, and how each is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dask_fabric.bench.agent import QUANTILES
from dask_fabric.bench.pairs import NO_HOG, Hog
from dask_fabric.bench.results import Row

AT_ONCE = 32  # connections of a storm
_GIL_BYTES = 100_000_000  # or the nearest size measured
_US = 1e6


@dataclass(frozen=True)
class Figure:
    """One measurement, which gives one row or several.

    Attributes
    ----------
    scenario, name, unit : str
        See `Row`.
    verb : str
        A method of `agent.Asker`.
    arguments : dict
        Arguments of the verb, without the count of repetitions.
    moved_bytes : int
        Bytes per repetition.
    quantiles : tuple of str
        A row for each of these, of times in microseconds, instead of the mean.
    hog : (bool, bool)
        Whether a thread of pure Python runs, on the asking and on the answering side.
    pinned : bool
        Whether each process is pinned to a CPU of its own: small messages are much faster if both
        happen to share one, whatever the protocol.
    """

    scenario: str
    name: str
    unit: str
    verb: str
    arguments: dict[str, Any] = field(default_factory=dict)
    moved_bytes: int = 0
    quantiles: tuple[str, ...] = ()
    hog: Hog = NO_HOG
    pinned: bool = False

    def rows(self) -> list[Row]:
        """Make its empty rows."""
        names = [f"{self.name}, {q}" for q in self.quantiles] or [self.name]
        parameters = {**self.arguments, "hog": list(self.hog)}
        higher = self.unit.endswith("/s")
        return [Row(self.scenario, n, self.unit, higher, parameters=parameters) for n in names]

    def values(self, answer: dict[str, Any], count: int) -> list[float]:
        """Give the values for the rows, from the answer after *count* repetitions."""
        seconds = max(answer["seconds"], 1e-9)  # CPU time has the resolution of ticks
        if self.quantiles:
            return [answer["quantiles"][q] * _US for q in self.quantiles]
        gigabytes = self.moved_bytes * count / 1e9
        by_unit: dict[str, Callable[[], float]] = {
            "us": lambda: seconds / count * _US,
            "1/s": lambda: count / seconds,
            "GB/s": lambda: gigabytes / seconds,
            "s/GB": lambda: seconds / gigabytes,
        }
        return [by_unit[self.unit]()]


def size_name(size: int) -> str:
    """Format a size in bytes in decimal units."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size} B"


@dataclass(frozen=True)
class Extent:
    """The variants of each scenario.

    Attributes
    ----------
    sizes : tuple of int
        Sizes of the arrays in bytes.
    ways : tuple of str
        ``one`` and ``both``.
    comms : tuple of int
        Numbers of parallel comms.
    module : str
        The module of the arrays: ``numpy``, or ``cupy``.
    """

    sizes: tuple[int, ...]
    ways: tuple[str, ...] = ("one", "both")
    comms: tuple[int, ...] = (1,)
    module: str = "numpy"

    def name(self, size: int) -> str:
        """Give the name of an array of this size."""
        return f"{self.module} {size_name(size)}"


def _pingpong(extent: Extent) -> list[Figure]:
    quantiles = tuple(QUANTILES)
    name = "round trip of a tiny message"
    return [Figure("pingpong", name, "us", "ping", quantiles=quantiles, pinned=True)]


def _stream(extent: Extent) -> list[Figure]:
    return [Figure("stream", "small messages one way", "1/s", "flood", pinned=True)]


def _bandwidth(extent: Extent) -> list[Figure]:
    return [
        _transfer(extent.name(size), size, way, comms)
        for comms in extent.comms
        for way in extent.ways
        for size in extent.sizes
    ]


def _transfer(array: str, size: int, way: str, comms: int) -> Figure:
    """Arrays one way are acknowledged; both ways use a comm for each, as workers do."""
    name = f"{array}, {'acknowledged' if way == 'one' else 'both ways'}"
    if comms > 1:
        name += f", {comms} at a time"
    arguments = {"nbytes": size, **({"comms": comms} if comms > 1 else {})}
    verb, directions = ("send", 1) if way == "one" else ("exchange", 2)
    return Figure("bandwidth", name, "GB/s", verb, arguments, size * comms * directions)


def _connect(extent: Extent) -> list[Figure]:
    storm = {"at_once": AT_ONCE}
    return [
        Figure("connect", "connects, one after the other", "1/s", "connects", pinned=True),
        Figure("connect", f"connects, {AT_ONCE} at once", "1/s", "connects", storm),
    ]


def _gil(extent: Extent) -> list[Figure]:
    size = min(extent.sizes, key=lambda one: abs(one - _GIL_BYTES))
    figures = []
    sides = {"idle": NO_HOG, "busy sender": (True, False), "busy receiver": (False, True)}
    for side, busy in sides.items():
        arguments = {"nbytes": size}
        name = f"{extent.name(size)}, {side}"
        figures += [
            Figure("gil", f"round trip, {side}", "us", "ping", quantiles=("p50",), hog=busy),
            Figure("gil", name, "GB/s", "send", arguments, size, hog=busy),
        ]
    return figures


def _cpu(extent: Extent) -> list[Figure]:
    size = max(extent.sizes)
    name = f"CPU of both sides at {size_name(size)}"
    return [Figure("cpu", name, "s/GB", "cpu", {"nbytes": size}, size)]


def _floor(extent: Extent) -> list[Figure]:
    """All figures that the floors support, without any protocol."""
    one_way = Extent(extent.sizes, ("one",))
    makers = (_pingpong, _stream, _bandwidth, _connect)
    return [replace(one, scenario="floor") for maker in makers for one in maker(one_way)]


SCENARIOS: dict[str, Callable[[Extent], list[Figure]]] = {
    "pingpong": _pingpong,
    "stream": _stream,
    "bandwidth": _bandwidth,
    "connect": _connect,
    "gil": _gil,
    "cpu": _cpu,
    "floor": _floor,
}


def figures(scenarios: Sequence[str], extent: Extent) -> list[Figure]:
    """All figures of the scenarios, in their order."""
    return [figure for name in scenarios for figure in SCENARIOS[name](extent)]
