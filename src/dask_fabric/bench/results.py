"""The results of a run of the suite, in rows, and their JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dask_fabric.errors import BenchError

FORMAT = "dask-fabric-bench"
VERSION = 1
BETWEEN_PROCESSES = ("sockets", "process_vm_readv", "ucx_perftest", "fi_pingpong")
FLOORS = (*BETWEEN_PROCESSES, "memcpy", "mmap")  # the last two move nothing between processes
NOISY_SPREAD = 0.2


@dataclass
class Row:
    """One figure, measured in rounds for several protocols and floors.

    Attributes
    ----------
    scenario, name, unit : str
        The figure and its unit; scenario and name together identify the row.
    higher_is_better : bool
        The direction of the figure; ratios above 1 are better in both.
    rounds : dict of str to list of float
        One value per round for each protocol and each floor.
    parameters : dict
        The parameters of the measurement, sizes in bytes.
    histograms : dict of str to dict
        Histograms of latencies, if measured: counts by bucket (`agent.distribution`).
    problems : dict of str to str
        Why a protocol has no value.
    """

    scenario: str
    name: str
    unit: str
    higher_is_better: bool = True
    rounds: dict[str, list[float]] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    histograms: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def add(self, column: str, value: float) -> None:
        """Add the value of one round."""
        self.rounds.setdefault(column, []).append(value)

    def add_histogram(self, column: str, counts: dict[str, int]) -> None:
        """Add the histogram of one round."""
        total = self.histograms.setdefault(column, {})
        for bucket, count in counts.items():
            total[bucket] = total.get(bucket, 0) + count

    def median(self, column: str) -> float | None:
        """Median over the rounds; None if the column was not measured."""
        values = self.rounds.get(column)
        return statistics.median(values) if values else None

    def quartiles(self, column: str) -> tuple[float, float] | None:
        """Lower and upper quartile of the rounds; None if the column was not measured."""
        values = self.rounds.get(column)
        if not values:
            return None
        if len(values) == 1:
            return values[0], values[0]
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return low, high

    def spread(self, column: str) -> float | None:
        """Half the distance of the quartiles, as a fraction of the median."""
        middle, ends = self.median(column), self.quartiles(column)
        return (ends[1] - ends[0]) / 2 / abs(middle) if middle and ends else None

    def times_better(self, column: str, than: str) -> float | None:
        """How many times better one column's median is than the other's; None if unknown."""
        return times_better(self.median(column), self.median(than), self.higher_is_better)

    def floor(self) -> str | None:
        """The best floor between two processes: the limit of the machine."""
        known = {name: value for name in BETWEEN_PROCESSES if (value := self.median(name))}
        best = max if self.higher_is_better else min
        return best(known, key=known.__getitem__) if known else None

    def part_of_floor(self, column: str) -> float | None:
        """The fraction of the best floor that a column reaches."""
        floor = self.floor()
        return self.times_better(column, floor) if floor else None


def times_better(one: float | None, other: float | None, higher: bool) -> float | None:
    """How many times better one value is than the other; None if one is missing or zero."""
    if not one or not other:
        return None
    return one / other if higher else other / one


@dataclass
class Results:
    """Everything of one run.

    Attributes
    ----------
    facts : dict
        The machine and the versions.
    options : dict
        The options of the command.
    protocols : list of str
        In the order of the columns; the first is the baseline.
    rows : list of Row
    matrix : dict, optional
        The result of `matrix.measure`.
    warnings : list of str
        Reasons to doubt the figures.
    """

    facts: dict[str, Any]
    options: dict[str, Any]
    protocols: list[str]
    rows: list[Row] = field(default_factory=list)
    matrix: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def scenarios(self) -> list[str]:
        """The scenarios of the rows, in order."""
        return list(dict.fromkeys(row.scenario for row in self.rows))

    @property
    def is_incomplete(self) -> bool:
        """Whether something could not be measured, or gave a wrong result."""
        links = self.matrix["links"] if self.matrix else ()
        return any(row.problems for row in self.rows) or any(link["error"] for link in links)

    def of(self, scenario: str) -> list[Row]:
        """The rows of one scenario."""
        return [row for row in self.rows if row.scenario == scenario]

    def as_json(self) -> str:
        """Give the JSON, with medians added for other readers."""
        document = {"format": FORMAT, "version": VERSION, **asdict(self)}
        for content, row in zip(document["rows"], self.rows, strict=True):
            content["median"] = {column: row.median(column) for column in row.rounds}
            content["part_of_floor"] = {p: row.part_of_floor(p) for p in row.rounds}
        return json.dumps(document, indent=1, default=str) + "\n"


def read(path: str | Path) -> Results:
    """Read the JSON of `Results.as_json`.

    Raises
    ------
    BenchError
        The file cannot be read, or does not contain results.
    """
    try:
        document = json.loads(Path(path).read_text())
        if document["format"] != FORMAT or document["version"] != VERSION:
            raise ValueError(f"its format is {document['format']} {document['version']}")
        rows = [_row(content) for content in document["rows"]]
        names = ("facts", "options", "protocols", "matrix", "warnings")
        return Results(rows=rows, **{name: document[name] for name in names})
    except OSError as exc:
        raise BenchError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise BenchError(
            f"{path} does not contain results of dask fabric bench --json: {_reason(exc)}"
        ) from exc


def _reason(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def _row(content: dict[str, Any]) -> Row:
    names = Row.__dataclass_fields__
    row = Row(**{name: content[name] for name in names})
    for values in row.rounds.values():
        if not all(isinstance(value, int | float) for value in values):
            raise ValueError(f"not all values of {row.name!r} are numbers")
    return row


def noise_warnings(rows: Iterable[Row], columns: Sequence[str]) -> list[str]:
    """Warn of rows that vary much between rounds."""
    rows = list(rows)
    noisy = [r for r in rows if any((r.spread(c) or 0) > NOISY_SPREAD for c in columns)]
    if not noisy:
        return []
    return [
        f"{len(noisy)} of {len(rows)} rows vary by more than {NOISY_SPREAD:.0%} between rounds "
        "(half the distance of the quartiles): the machine is noisy, or --rounds is too low"
    ]
