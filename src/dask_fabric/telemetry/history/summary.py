"""The summary of one job, and its text in the file, which is untrusted when it is read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

TEXT_BYTES_LIMIT = 128 << 10  # enough for the longest names, at 12 bytes per character
AMOUNT_LIMIT = 2**63  # all numbers written and read are below it
_STRING_LIMIT = 200
_LIST_LIMIT = 32


@dataclass(frozen=True)
class PathSummary:
    """The traffic of all workers by one path, and their waiting times.

    Attributes
    ----------
    bandwidth_p50, bandwidth_p90, bandwidth_p99, bandwidth_max : float
        Bytes per second that all workers together received, over the intervals between two
        writes, without intervals in which nothing was received.
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
    """A worker and a peer whose transfers were slow compared with others by the same path."""

    worker: str
    peer: str
    path: str
    bytes_moved: int
    bytes_per_second: float


@dataclass(frozen=True)
class Summary:
    """The summary of one job.

    Attributes
    ----------
    workers, silent : int
        The largest number at one time of all workers, and of workers without a report.
    workers_total : int
        The number of workers that there ever were.
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
        """Give the text for the file."""
        return json.dumps(asdict(self), separators=(",", ":"))


def from_text(text: str) -> Summary:
    """Parse the text of `Summary.as_text`.

    Raises
    ------
    ValueError
        The text is not a summary.
    """
    try:
        content = json.loads(text)
        paths = [_fill(PathSummary, one) for one in _list(content["paths"])]
        links = [_fill(Link, one) for one in _list(content["slow_links"])]
        return _fill(Summary, content, paths=paths, slow_links=links)
    except (TypeError, KeyError, RecursionError) as exc:
        raise ValueError(f"not a summary of a job: {exc!r}") from exc


def _fill(kind: Any, content: dict[str, Any], **known: Any) -> Any:
    plain = (one for one in fields(kind) if one.name not in known)
    return kind(**known, **{one.name: _CHECKS[str(one.type)](content[one.name]) for one in plain})


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > _LIST_LIMIT:
        raise TypeError("a list is expected")
    return value


def _string(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _STRING_LIMIT:
        raise TypeError("a short text is expected")
    return value.encode(errors="replace").decode()  # JSON may contain lone surrogates


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < AMOUNT_LIMIT:
        raise TypeError("a count is expected")
    return value


def _amount(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < AMOUNT_LIMIT:
        raise TypeError("an amount is expected")
    return float(value)


_CHECKS = {"str": _string, "int": _count, "float": _amount}
