"""All pairs of workers of a cluster: latency, bandwidth, and path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TextIO

from dask_fabric.bench import workers
from dask_fabric.bench.cluster import Cluster, Worker
from dask_fabric.bench.diagnosis import Link, better_of, diagnose, suspects
from dask_fabric.bench.progress import progress
from dask_fabric.bench.tournament import Pairing, rounds

_SUSPECTS_LIMIT = 32  # links measured again; more cannot all be hiccups


@dataclass(frozen=True)
class Effort:
    """How long each pair is measured.

    Attributes
    ----------
    nbytes : int
        Size of the arrays.
    seconds : float
        Time for arrays in each direction, approximately.
    patience_seconds : float
        A pair that takes longer counts as broken.
    """

    nbytes: int = 16_000_000
    round_trip_count: int = 200
    seconds: float = 0.3
    patience_seconds: float = 120.0


def measure(cluster: Cluster, effort: Effort, stream: TextIO) -> dict[str, Any]:
    """Measure all pairs; give the content of `Results.matrix`."""
    by_address = {worker.address: worker for worker in cluster.workers}
    hosts: dict[str, list[str]] = {}
    for worker in cluster.workers:
        hosts.setdefault(worker.place, []).append(worker.address)
    links: list[Link] = []
    pairings = rounds(hosts)
    with progress(len(pairings), stream) as advance:
        for pairing in pairings:
            advance(0, f"{len(pairing)} pairs at a time")
            links += _measure_round(cluster, pairing, by_address, effort)
            advance(1)
        links = _measure_again(cluster, links, by_address, effort)
    return {
        "protocol": cluster.scheme,
        "nbytes": effort.nbytes,
        "workers": [asdict(worker) for worker in cluster.workers],
        "links": [asdict(link) for link in links],
        "findings": diagnose(cluster.workers, links),
    }


def _measure_again(
    cluster: Cluster, links: list[Link], by_address: dict[str, Worker], effort: Effort
) -> list[Link]:
    """Measure links that seem slow once more, one by one, and keep the better values."""
    by_name = {worker.name: worker for worker in cluster.workers}
    place = {worker.name: worker.place for worker in cluster.workers}
    kept = {(link.one, link.other): link for link in links}
    for link in suspects(links, place)[:_SUSPECTS_LIMIT]:
        pair = (by_name[link.one].address, by_name[link.other].address)
        (again,) = _measure_round(cluster, [pair], by_address, effort)
        kept[link.one, link.other] = better_of(link, again)
    return list(kept.values())


def _measure_round(
    cluster: Cluster, pairing: Pairing, by_address: dict[str, Worker], effort: Effort
) -> list[Link]:
    """Measure pairs at once; those of two schemes again, by a connection of the other scheme."""
    links = _measure_pairs(cluster, pairing, by_address, effort)
    mixed = {
        number: (other, one)
        for number, (one, other) in enumerate(pairing)
        if _scheme(one) != _scheme(other)
    }
    back = _measure_pairs(cluster, list(mixed.values()), by_address, effort) if mixed else []
    for number, link in zip(mixed, back, strict=True):
        links[number] = _both_schemes(links[number], link)
    return links


def _both_schemes(one: Link, other: Link) -> Link:
    """Combine two links, each to the other's end: who needs data connects to who has them."""
    if one.error or other.error:
        return replace(one, error=one.error or other.error)
    return replace(
        one,
        path=other.path,
        back_path=one.path,
        refused=other.refused | one.refused,
        there_gbs=other.back_gbs,
        flows=one.flows or other.flows,
    )


def _scheme(address: str) -> str:
    return address.partition("://")[0]


def _measure_pairs(
    cluster: Cluster, pairing: Pairing, by_address: dict[str, Worker], effort: Effort
) -> list[Link]:
    answers = cluster.client.run(
        workers.measure_link,
        dict(pairing),
        effort.nbytes,
        effort.round_trip_count,
        effort.seconds,
        effort.patience_seconds,
        workers=[one for one, _ in pairing],
        on_error="return",
    )
    found = []
    for one, other in pairing:
        answer = answers.get(one, {"error": "the worker is gone"})
        if isinstance(answer, BaseException):
            answer = {"error": str(answer) or type(answer).__name__}
        found.append(_link(by_address[one], by_address[other], answer))
    return found


def _link(one: Worker, other: Worker, answer: dict[str, Any]) -> Link:
    if "error" in answer:
        return Link(one.name, other.name, error=str(answer["error"]))
    return Link(
        one.name,
        other.name,
        path=path_name(_scheme(other.address), answer),
        refused={str(path): str(why) for path, why in answer.get("refused", {}).items()},
        round_trip_us=answer["round_trip_seconds"] * 1e6,
        there_gbs=answer["there_bytes_per_second"] / 1e9,
        back_gbs=answer["back_bytes_per_second"] / 1e9,
        flows=[(count, rate / 1e9) for count, rate in (answer.get("flows") or {}).get("rates", ())],
    )


def path_name(scheme: str, figures: dict[str, Any]) -> str:
    """Name the path of large frames by a comm's statistics; without them it is the scheme."""
    path = figures.get("path")
    if path is None:
        return scheme
    if path == "stream":
        path = figures.get("control_stream", "tcp")
        return f"{path} with TLS" if figures.get("encrypted") else path
    return path


def grids(matrix: dict[str, Any]) -> dict[str, list[list[Any]]]:
    """Tables from row to column, in the order of the workers: bandwidth, round trip, path."""
    names = [worker["name"] for worker in matrix["workers"]]
    place = {name: number for number, name in enumerate(names)}
    found: dict[str, list[list]] = {
        key: [[None] * len(names) for _ in names] for key in ("bandwidth", "round trip", "path")
    }
    for link in matrix["links"]:
        i, j = place[link["one"]], place[link["other"]]
        found["bandwidth"][i][j], found["bandwidth"][j][i] = link["there_gbs"], link["back_gbs"]
        found["round trip"][i][j] = found["round trip"][j][i] = link["round_trip_us"]
        found["path"][i][j] = link["path"]
        found["path"][j][i] = link.get("back_path") or link["path"]
    return found


def worker_names(matrix: dict[str, Any]) -> Sequence[str]:
    """Give the names of the workers, in the order of the grids."""
    return [worker["name"] for worker in matrix["workers"]]
