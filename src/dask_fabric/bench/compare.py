"""Comparing two results: which figures became better, and which worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dask_fabric.bench.results import FLOORS, Results, Row, times_better
from dask_fabric.bench.tables import number
from dask_fabric.text_table import table

BETTER, WORSE, NOISE = "better", "worse", "within noise"
GONE, NEW, FAILED = "gone", "new", "failed"
THRESHOLD = 0.05
_BANDWIDTH = "GB/s"
_LINK_THRESHOLD = 0.2  # a link is measured once, for a third of a second
_CHANGING = ("date", "load_average")
HEAD = ("scenario", "figure", "unit", "column", "A", "B", "ratio", "verdict")


@dataclass(frozen=True)
class Comparison:
    """One figure of one column in both results.

    Attributes
    ----------
    before, after : float or None
        The medians.
    times_better : float or None
        Above 1 if the second is better, whatever the direction of the figure.
    verdict : str
    """

    scenario: str
    name: str
    unit: str
    column: str
    before: float | None
    after: float | None
    times_better: float | None
    verdict: str


def compare(a: Results, b: Results, threshold: float = THRESHOLD) -> list[Comparison]:
    """Compare all figures of either, and all links of two matrices.

    A figure is better or worse if the medians differ by more than the threshold, and the middle
    halves of the rounds do not overlap. Links have no rounds: they must differ by a fifth.
    """
    return _compare_rows(a, b, threshold) + _compare_links(a, b, max(threshold, _LINK_THRESHOLD))


def _compare_rows(a: Results, b: Results, threshold: float) -> list[Comparison]:
    before, after = _by_identity(a), _by_identity(b)
    either = {**after, **before}
    found = []
    for identity in dict.fromkeys([*before, *after]):
        known, one, other = either[identity], before.get(identity), after.get(identity)
        found += [_compare(known, one, other, column, threshold) for column in _columns(one, other)]
    return found


def _compare_links(a: Results, b: Results, threshold: float) -> list[Comparison]:
    """Compare the links of two matrices by the names of their workers."""
    before, after = _links(a.matrix), _links(b.matrix)
    found = []
    for identity in dict.fromkeys([*before, *after]):
        one, other = before.get(identity), after.get(identity)
        ratio = times_better(other, one, identity[2] == _BANDWIDTH)
        if other is None:
            verdict = FAILED if identity in after else GONE
        elif one is None:
            verdict = NEW
        else:
            verdict = _verdict(ratio, threshold)
        found.append(Comparison(*identity, one, other, ratio, verdict))
    return found


def _links(matrix: dict[str, Any] | None) -> dict[tuple[str, str, str, str], float | None]:
    """Give the figures of a matrix; what failed is None."""
    found: dict[tuple[str, str, str, str], float | None] = {}
    if matrix is None:
        return found
    for link in matrix["links"]:
        one, other, protocol = link["one"], link["other"], matrix["protocol"]
        for name, unit, value in (
            (f"{one} to {other}", _BANDWIDTH, link["there_gbs"]),
            (f"{other} to {one}", _BANDWIDTH, link["back_gbs"]),
            (f"{min(one, other)} and {max(one, other)}", "us", link["round_trip_us"]),
        ):
            found["matrix", name, unit, protocol] = value
    return found


def _columns(a: Row | None, b: Row | None) -> list[str]:
    """Give the columns of either; floors, which are optional, only if both have them."""
    found = {column: None for row in (a, b) if row for column in (*row.rounds, *row.problems)}
    in_both = a and b and {*a.rounds} & {*b.rounds}
    return [column for column in found if column not in FLOORS or column in (in_both or ())]


def _by_identity(results: Results) -> dict[tuple[str, str], Row]:
    return {(row.scenario, row.name): row for row in results.rows}


def _compare(known: Row, a: Row | None, b: Row | None, column: str, threshold: float) -> Comparison:
    before, after = a.median(column) if a else None, b.median(column) if b else None
    ratio = times_better(after, before, known.higher_is_better)
    if after is None:
        verdict = FAILED if b and column in b.problems else GONE
    elif before is None:
        verdict = NEW
    elif _meet(a, b, column):
        verdict = NOISE
    else:
        verdict = _verdict(ratio, threshold)
    identity = (known.scenario, known.name, known.unit, column)
    return Comparison(*identity, before, after, ratio, verdict)


def _verdict(ratio: float | None, threshold: float) -> str:
    if ratio is None or abs(ratio - 1) <= threshold:
        return NOISE
    return BETTER if ratio > 1 else WORSE


def _meet(a: Row | None, b: Row | None, column: str) -> bool:
    """Whether the middle halves of the rounds overlap."""
    one, other = (row.quartiles(column) if row else None for row in (a, b))
    return one is not None and other is not None and one[0] <= other[1] and other[0] <= one[1]


def warnings(a: Results, b: Results) -> list[str]:
    """List what makes the two hard to compare: other machines or versions, and noise."""
    changed = [
        f"{name}: {a.facts.get(name)} in A, {b.facts.get(name)} in B"
        for name in dict.fromkeys([*a.facts, *b.facts])
        if name not in _CHANGING and a.facts.get(name) != b.facts.get(name)
    ]
    return changed + [f"{x}: {text}" for x, one in (("A", a), ("B", b)) for text in one.warnings]


def render(comparisons: Sequence[Comparison], markdown: bool) -> str:
    """Write a line for each, and a summary."""
    lines = table([HEAD, *map(_cells, comparisons)], has_head=True, markdown=markdown)
    counts = {
        verdict: sum(one.verdict == verdict for one in comparisons)
        for verdict in (BETTER, WORSE, NOISE, FAILED, GONE, NEW)
    }
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return "\n".join([*lines, "", summary or "nothing to compare"])


def _cells(one: Comparison) -> list[str]:
    ratio = "" if one.times_better is None else f"{one.times_better:.2f}x"
    values = (number(one.before), number(one.after))
    return [one.scenario, one.name, one.unit, one.column, *values, ratio, one.verdict]
