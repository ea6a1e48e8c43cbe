"""Which pairs are measured at the same time: those that share no host."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

Pairing = list[tuple[str, str]]


def rounds(hosts: Mapping[str, Sequence[str]]) -> list[Pairing]:
    """Give every pair of workers once, in rounds in which no host takes part twice.

    First come the pairs within each host, one after the other, all hosts at the same time. Then the
    hosts meet as in a tournament in which each plays against each, and while two hosts meet, the
    pairs of their workers come one after the other.

    Parameters
    ----------
    hosts : mapping of str to sequence of str
        The workers of every host.
    """
    within = [list(itertools.combinations(workers, 2)) for workers in hosts.values()]
    found = _side_by_side(within)
    for meeting in tournament(list(hosts)):
        found += _side_by_side([list(itertools.product(hosts[a], hosts[b])) for a, b in meeting])
    return found


def _side_by_side(sequences: Sequence[Pairing]) -> list[Pairing]:
    """The first pairs of all, the second of all, and so on."""
    return [
        [pair for pair in step if pair is not None] for step in itertools.zip_longest(*sequences)
    ]


def tournament(players: Sequence[str]) -> list[Pairing]:
    """Let everybody meet everybody, nobody twice in a round, in as few rounds as that takes."""
    circle: list[str | None] = [*players, *([None] * (len(players) % 2))]
    found = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        meetings = zip(circle[:half], reversed(circle[half:]), strict=True)
        found.append([(a, b) for a, b in meetings if a is not None and b is not None])
        circle[1:] = [circle[-1], *circle[1:-1]]  # the first stays, the others move on
    return [pairing for pairing in found if pairing]
