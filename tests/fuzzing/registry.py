"""The targets of the fuzzer, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

Run = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """Code that reads a peer's bytes.

    Parameters
    ----------
    name : str
    run : callable
        Called with one input. It may raise an error of ours, and no other.
    seeds : list of bytes
        Good inputs, from which others are made.
    words : list of bytes
        What the fuzzer inserts: names and numbers that it would hardly guess.
    share : int
        How much of the time it gets, compared with the others.
    """

    name: str
    run: Run
    seeds: list[bytes]
    words: list[bytes]
    share: int


TARGETS: dict[str, Target] = {}


def target(
    seeds: Iterable[bytes], words: Iterable[bytes] = (), share: int = 1
) -> Callable[[Run], Run]:
    """Make a function a target; see `Target`."""

    def register(run: Run) -> Run:
        name = run.__name__
        TARGETS[name] = Target(name, run, list(seeds), list(words), share)
        return run

    return register
