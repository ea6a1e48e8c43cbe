"""Finding oddities in a matrix: slow links and nodes, and unusual paths."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dask_fabric import providers

if TYPE_CHECKING:
    from dask_fabric.bench.cluster import Worker

_SLOW = 0.5  # of the upper quartile's bandwidth
_CAPPED = 1.6  # times one connection; a cap is doubled by two, and a busy CPU eased by some
_LATE = 3.0  # times the lower quartile's round trip
_LATE_US = 100.0  # a smaller difference does not matter

Ends = tuple[str, str]  # from one node to another


@dataclass(frozen=True)
class Link:
    """The measurement between two workers, or an error.

    Attributes
    ----------
    one, other : str
        Names of the workers.
    path : str
        The path of large frames from `one` to `other`, or of both ways.
    refused : dict of str to str
        Why other paths are not in use.
    there_gbs, back_gbs : float
        Bandwidth from `one` to `other`, and back.
    back_path : str
        The path of the other way, if the workers listen on different schemes: data go by the scheme
        of the worker that has them.
    flows : list of (int, float)
        If several connections are faster than one: their number, and GB/s. Also of one.
    """

    one: str
    other: str
    path: str | None = None
    refused: dict[str, str] = field(default_factory=dict)
    round_trip_us: float | None = None
    there_gbs: float | None = None
    back_gbs: float | None = None
    error: str = ""
    back_path: str | None = None
    flows: list[tuple[int, float]] = field(default_factory=list)

    def paths(self) -> tuple[str, ...]:
        """Give the paths that are known, once each."""
        return tuple(dict.fromkeys(filter(None, (self.path, self.back_path))))


def diagnose(workers: Sequence[Worker], links: Sequence[Link]) -> list[str]:
    """Describe oddities in sentences.

    Links within hosts are compared with each other, and so are links between hosts. Between hosts,
    an oddity that all workers of a host share is attributed to the host.
    """
    place = {worker.name: worker.place for worker in workers}
    within = [link for link in links if place[link.one] == place[link.other]]
    between = [link for link in links if place[link.one] != place[link.other]]
    names = _host_names(workers)
    own = {name: name for name in place}
    own_names = {name: f"worker {name}" for name in place}
    found = _broken(workers, links)
    for kind in (between, within):
        working = [link for link in kind if not link.error]
        found += _odd_paths(working)
        if kind is between:
            found += _capped(working)
        for measure in _MEASURES:
            bad: set[str] = set()
            if kind is between:
                said, bad = _odd_values(working, place, names, measure)
                found += said
            left = [link for link in working if not {place[link.one], place[link.other]} & bad]
            said, _ = _odd_values(left, own, own_names, measure, kind is within)
            found += said
    return list(dict.fromkeys(found))


def suspects(links: Sequence[Link], place: Mapping[str, str]) -> list[Link]:
    """Give links that are slow or late compared with others of their kind, or failed."""
    found = [link for link in links if link.error]
    own = {name: name for name in place}
    for within in (True, False):
        kind = [x for x in links if not x.error and (place[x.one] == place[x.other]) is within]
        for measure in _MEASURES:
            odd = _odd_ends(_medians(kind, own, measure), measure)
            named = {frozenset(ends) for ends in odd}
            found += [link for link in kind if {link.one, link.other} in named]
    return list({(link.one, link.other): link for link in found}.values())


def better_of(one: Link, other: Link) -> Link:
    """Combine the best values of two measurements of a link: a hiccup must not make it slow."""
    if one.error or other.error:
        return other if one.error else one
    return replace(
        other,
        round_trip_us=_best(min, one.round_trip_us, other.round_trip_us),
        there_gbs=_best(max, one.there_gbs, other.there_gbs),
        back_gbs=_best(max, one.back_gbs, other.back_gbs),
    )


def _best(choose: Callable[[list[float]], float], *values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return choose(known) if known else None


def _host_names(workers: Sequence[Worker]) -> dict[str, str]:
    """Give the names of hosts: of their only worker, or of the host with all workers."""
    by_place: dict[str, list[Worker]] = {}
    for worker in workers:
        by_place.setdefault(worker.place, []).append(worker)
    return {
        place: f"worker {there[0].name}"
        if len(there) == 1
        else f"host {there[0].host} (workers {', '.join(one.name for one in there)})"
        for place, there in by_place.items()
    }


def _broken(workers: Sequence[Worker], links: Sequence[Link]) -> list[str]:
    """Describe failed links; a worker without any working link is described once."""
    broken = [link for link in links if link.error]
    count = Counter(name for link in broken for name in (link.one, link.other))
    alone = [w.name for w in workers if count[w.name] == len(workers) - 1 and len(workers) > 2]
    found = []
    for name in alone:
        reason = next(link.error for link in broken if name in (link.one, link.other))
        found.append(f"worker {name} could not be measured with any other: {reason}")
    return found + [
        f"worker {link.one} to worker {link.other} could not be measured: {link.error}"
        for link in broken
        if not {link.one, link.other} & set(alone)
    ]


def _odd_paths(links: Sequence[Link]) -> list[str]:
    """Describe unusual paths; a worker that uses one with all others is described once."""
    ways = [(link, path) for link in links for path in link.paths()]
    paths = Counter(path for _, path in ways)
    if len(paths) < 2:
        return []
    usual = paths.most_common(1)[0][0]
    found = []
    odd = [(link, path) for link, path in ways if path != usual]
    count = Counter(name for link in links for name in (link.one, link.other))
    odd_count = Counter(name for link, _ in odd for name in (link.one, link.other))
    named = {name for name in count if odd_count[name] == count[name] > 1}
    if len(named) * 2 > len(count):  # most workers: attribute it to no worker
        named = set()
    for name in sorted(named):
        own = [(link, path) for link, path in odd if name in (link.one, link.other)]
        path, reason = own[0][1], _reason([link for link, _ in own], usual)
        found.append(f"worker {name} uses {_title(path)} to all others{reason}")
    return found + [
        f"worker {link.one} and worker {link.other} use {_title(path)}, "
        f"most others {_title(usual)}{_reason([link], usual)}"
        for link, path in odd
        if not {link.one, link.other} & named
    ]


def _capped(links: Sequence[Link]) -> list[str]:
    """Describe pairs between which one connection is much slower than several."""
    capped = [
        link for link in links if link.flows and link.flows[-1][1] > _CAPPED * link.flows[0][1]
    ]
    if len(capped) == len(links) > 1:
        one = statistics.median(link.flows[0][1] for link in capped)
        several = statistics.median(link.flows[-1][1] for link in capped)
        return [
            f"capped flow: all pairs of workers between hosts, one connection moves {one:.3g} "
            f"GB/s, several together {several:.3g} GB/s"
        ]
    found = []
    for link in capped:
        (_, one), (count, several) = link.flows[0], link.flows[-1]
        found.append(
            f"capped flow: worker {link.one} and worker {link.other}, one connection moves "
            f"{one:.3g} GB/s, {count} together {several:.3g} GB/s"
        )
    return found


def _title(path: str) -> str:
    provider = providers.by_name().get(path)
    return "TCP" if path == "tcp" else provider.title if provider else path


def _reason(links: Iterable[Link], usual: str) -> str:
    """Give the most frequent reason why the links do not use the usual path."""
    reasons = Counter(link.refused[usual] for link in links if usual in link.refused)
    return f": {reasons.most_common(1)[0][0]}" if reasons else ""


def _upper_quartile(values: Sequence[float]) -> float:
    """Give the upper quartile. Not the median: one slow node of three affects most links."""
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=4, method="inclusive")[2]


@dataclass(frozen=True)
class _Measure:
    """A value of links that is compared with the better links.

    Attributes
    ----------
    word : str
        The word for an odd value.
    both : callable
        Gives the values of a link, there and back.
    usual : callable
        Gives the quartile of the better links.
    is_odd : callable
        Whether a value is odd, compared with the usual one.
    written : callable
        Formats a value with its unit.
    """

    word: str
    both: Callable[[Link], tuple[float | None, float | None]]
    usual: Callable[[Sequence[float]], float]
    is_odd: Callable[[float, float], bool]
    written: Callable[[float], str]


_MEASURES = (
    _Measure(
        word="slow",
        both=lambda link: (link.there_gbs, link.back_gbs),
        usual=_upper_quartile,
        is_odd=lambda value, usual: value < _SLOW * usual,
        written=lambda value: f"{value:.3g} GB/s",
    ),
    _Measure(
        word="late",
        both=lambda link: (link.round_trip_us, link.round_trip_us),
        usual=lambda values: -_upper_quartile([-value for value in values]),
        is_odd=lambda value, usual: value > max(_LATE * usual, usual + _LATE_US),
        written=lambda value: f"{value:,.0f} us",
    ),
)


def _odd_values(
    links: Sequence[Link],
    nodes: Mapping[str, str],
    names: Mapping[str, str],
    measure: _Measure,
    links_too: bool = True,
) -> tuple[list[str], set[str]]:
    """Describe nodes whose links are all odd, and the odd links of other nodes."""
    values = _medians(links, nodes, measure)
    if not values:
        return [], set()
    usual = measure.usual(list(values.values()))
    odd = _odd_ends(values, measure)
    bad = _odd_nodes(values, odd)
    beside = f"; the better links have {measure.written(usual)}"
    found = []
    for node in sorted(bad, key=names.__getitem__):
        value = statistics.median(value for ends, value in odd.items() if node in ends)
        found.append(f"{measure.word} node: {names[node]}, {measure.written(value)} to all{beside}")
    for ends in odd if links_too else ():
        if not bad & {*ends}:
            found += _odd_link(ends, odd, names, measure, beside)
    return found, bad


def _odd_ends(values: Mapping[Ends, float], measure: _Measure) -> dict[Ends, float]:
    """Give the values that are odd compared with the better links."""
    usual = measure.usual(list(values.values())) if values else 0.0
    return {ends: value for ends, value in values.items() if measure.is_odd(value, usual)}


def _odd_nodes(values: Mapping[Ends, float], odd: Mapping[Ends, float]) -> set[str]:
    """Give nodes with several links, all odd, if other nodes have a good link."""
    good = {node for ends in values if ends not in odd for node in ends}
    peers = Counter(node for ends in values for node in ends)
    return {node for node in peers if peers[node] > 2 and node not in good} if good else set()


def _medians(
    links: Sequence[Link], nodes: Mapping[str, str], measure: _Measure
) -> dict[Ends, float]:
    """Give the median values from node to node, over the links of their workers."""
    values: dict[Ends, list[float]] = {}
    for link in links:
        one, other = nodes[link.one], nodes[link.other]
        for ends, value in zip(((one, other), (other, one)), measure.both(link), strict=True):
            if value is not None:
                values.setdefault(ends, []).append(value)
    return {ends: statistics.median(found) for ends, found in values.items()}


def _odd_link(
    ends: Ends,
    odd: Mapping[Ends, float],
    names: Mapping[str, str],
    measure: _Measure,
    beside: str,
) -> list[str]:
    """Describe a link that is odd in one or both directions."""
    one, other = ends
    back = odd.get((other, one))
    if back is None:
        value = measure.written(odd[ends])
        return [f"{measure.word} link: {names[one]} to {names[other]}, {value}{beside}"]
    if names[one] > names[other]:
        return []  # described with the ends swapped
    value = measure.written(statistics.median([odd[ends], back]))
    return [f"{measure.word} link: {names[one]} and {names[other]}, {value}{beside}"]
