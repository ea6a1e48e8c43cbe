"""The summary of one job, and its text in the file, which is not trusted when it is read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

TEXT_BYTES_LIMIT = 128 << 10  # more than the longest names make, with 12 bytes to a character
AMOUNT_LIMIT = 2**63  # what is written and read is below it
_STRING_LIMIT = 200
_LIST_LIMIT = 32


@dataclass(frozen=True)
class PathSummary:
    """What all workers have moved by one path, and waited for.

    Attributes
    ----------
    bandwidth_p50, bandwidth_p90, bandwidth_p99, bandwidth_max : float
        Bytes per second that all workers together received, over the intervals between two
        writes in which something was received.
    """

    path: str
    bytes_sent: int
    bytes_received: int
    fallbacks: int
    loop_seconds: float
    allocate_seconds: float
    wire_seconds: float
    peer_seconds: float
    serialize_seconds: float
    bandwidth_p50: float
    bandwidth_p90: float
    bandwidth_p99: float
    bandwidth_max: float


@dataclass(frozen=True)
class Link:
    """A worker and a peer whose transfers were slow beside others of their path."""

    worker: str
    peer: str
    path: str
    bytes_moved: int
    bytes_per_second: float


@dataclass(frozen=True)
class Summary:
    """What became of one job.

    Attributes
    ----------
    workers, silent : int
        Most at once: of all, and of those that report nothing.
    workers_total : int
        All that there ever were.
    """

    scheduler: str
    interval_seconds: float
    workers: int
    workers_total: int
    hosts: int
    silent: int
    paths: list[PathSummary] = field(default_factory=list)
    slow_links: list[Link] = field(default_factory=list)

    def as_text(self) -> str:
        """Write it as it stands in the file."""
        return json.dumps(asdict(self), separators=(",", ":"))


def from_text(text: str) -> Summary:
    """Read what `Summary.as_text` wrote.

    Raises
    ------
    ValueError
        It is something else.
    """
    try:
        told = json.loads(text)
        paths = [_fill(PathSummary, one) for one in _list(told["paths"])]
        links = [_fill(Link, one) for one in _list(told["slow_links"])]
        return _fill(Summary, told, paths=paths, slow_links=links)
    except (TypeError, KeyError, RecursionError) as exc:
        raise ValueError(f"no summary of a job: {exc!r}") from exc


def _fill(kind: Any, told: dict[str, Any], **known: Any) -> Any:
    plain = (one for one in fields(kind) if one.name not in known)
    return kind(**known, **{one.name: _CHECKS[str(one.type)](told[one.name]) for one in plain})


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > _LIST_LIMIT:
        raise TypeError("a list is expected")
    return value


def _string(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _STRING_LIMIT:
        raise TypeError("a short text is expected")
    return value.encode(errors="replace").decode()  # JSON can name half a character


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < AMOUNT_LIMIT:
        raise TypeError("a count is expected")
    return value


def _amount(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < AMOUNT_LIMIT:
        raise TypeError("an amount is expected")
    return float(value)


_CHECKS = {"str": _string, "int": _count, "float": _amount}
