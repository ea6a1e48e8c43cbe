"""What every benchmark prints and saves: facts of the machine, medians, ratios, a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@dataclass
class Row:
    """One figure, measured in rounds for several schemes.

    Attributes
    ----------
    name, unit : str
        What is measured, and in what.
    higher_is_better : bool
        The direction of the figure; ratios above 1 are better in both.
    rounds : dict of str to list of float
        One value per round for each scheme.
    """

    name: str
    unit: str
    higher_is_better: bool = True
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, scheme: str, value: float) -> None:
        """Note the value of one round."""
        self.rounds.setdefault(scheme, []).append(value)

    def median(self, scheme: str) -> float | None:
        """Median over the rounds, or None where the scheme was not measured."""
        values = self.rounds.get(scheme)
        return statistics.median(values) if values else None

    def times_better(self, scheme: str, than: str) -> float | None:
        """How many times better one scheme's median is than the other's; None where unknown."""
        mine, other = self.median(scheme), self.median(than)
        if not mine or not other:
            return None
        return mine / other if self.higher_is_better else other / mine

    def as_dict(self, baseline: str) -> dict:
        """Everything of this row, in what JSON can hold."""
        schemes = list(self.rounds)
        return {
            **asdict(self),
            "median": {s: self.median(s) for s in schemes},
            f"times_better_than_{baseline}": {s: self.times_better(s, baseline) for s in schemes},
        }


def facts() -> dict[str, object]:
    """The machine and the versions that a figure depends on."""
    return {
        "cpu": _cpu_model(),
        "cpu_count": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{p: _version(p) for p in ("distributed", "dask", "numpy", "uvloop", "dask-fabric")},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.lower().startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def print_facts() -> None:
    """One line that says where the figures come from."""
    print(", ".join(f"{k} {v}" for k, v in facts().items() if v is not None), flush=True)


def progress(text: str) -> None:
    """A plain line on stderr, so that stdout holds the table alone."""
    print(text, file=sys.stderr, flush=True)


def print_table(rows: Sequence[Row], schemes: Sequence[str], baseline: str) -> None:
    """Print the medians, each with how many times better than the baseline it is."""
    print(f"\nmedians; (x) times better than {baseline}\n")
    print_grid([["figure", "unit", *schemes], *(_cells(row, schemes, baseline) for row in rows)])


def print_grid(lines: Sequence[Sequence[str]]) -> None:
    """Print cells as a Markdown table with aligned columns; the first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head, *body = [[c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines]
    for line in (head, ["-" * w for w in widths], *body):
        print("| " + " | ".join(line) + " |", flush=True)


def _cells(row: Row, schemes: Sequence[str], baseline: str) -> list[str]:
    cells = [row.name, row.unit]
    for scheme in schemes:
        median = row.median(scheme)
        if median is None:
            cells.append("")
            continue
        text = f"{median:,.0f}" if abs(median) >= 1000 else f"{median:.3g}"
        against_base = row.times_better(scheme, baseline)
        if against_base is not None and scheme != baseline:
            text += f" ({against_base:.2f}x)"
        cells.append(text)
    return cells


def save(
    path: str | None, rows: Sequence[Row], baseline: str, options: dict, asked: Sequence[dict] = ()
) -> None:
    """Write facts, options, rows and what is asked of them as JSON, where a path is given."""
    if path is None:
        return
    figures = [row.as_dict(baseline) for row in rows]
    document = {"facts": facts(), "options": options, "figures": figures, "asked": asked}
    Path(path).write_text(json.dumps(document, indent=1) + "\n")
    progress(f"written: {path}")
