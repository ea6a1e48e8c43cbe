"""A schedule of pairs: pairs measured at the same time share no host."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

Pairing = list[tuple[str, str]]


def rounds(hosts: Mapping[str, Sequence[str]]) -> list[Pairing]:
    """Give every pair of workers once, in rounds in which each host takes part once at most.

    First come the pairs within hosts: one at a time per host, all hosts in parallel. Then the hosts
    meet as in a round-robin tournament, and while two hosts meet, the pairs of their workers follow
    one by one.

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
    """Combine the first pairs of all sequences, then the second ones, and so on."""
    return [
        [pair for pair in step if pair is not None] for step in itertools.zip_longest(*sequences)
    ]


def tournament(players: Sequence[str]) -> list[Pairing]:
    """Give a round-robin tournament: each meets each, in as few rounds as possible."""
    circle: list[str | None] = [*players, *([None] * (len(players) % 2))]
    found = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        meetings = zip(circle[:half], reversed(circle[half:]), strict=True)
        found.append([(a, b) for a, b in meetings if a is not None and b is not None])
        circle[1:] = [circle[-1], *circle[1:-1]]  # the first stays, the others rotate
    return [pairing for pairing in found if pairing]
