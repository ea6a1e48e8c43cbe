"""Write all pages and files that are made from the code, or from measured figures.

Run it with the package installed: ``python docs/generate.py``. A test says whether they are fresh.

=============================================  ====================================================
made                                           from
=============================================  ====================================================
docs/wire-protocol.md, docs/architecture.md,   `dask_fabric.wire.states`
diagram of the states
docs/configuration.md, table of the keys       `dask_fabric.config.table`
dask_fabric.yaml, dask_fabric-schema.yaml      the same
README.md (chart too), docs/benchmarks.md       ``benchmarks/results/*.json``, see ``make figures``
docs/shm.md, tables                            what ``benchmarks/shm.py`` wrote
docs/ofi.md, table of the providers            `dask_fabric.paths.ofi.kinds`
docs/ofi.md, table of figures                  ``benchmarks/results/ofi-*.json``
docs/ecosystem.md, table of objects            what ``benchmarks/objects.py`` wrote
docs/lanes.md, tables of lanes                 what ``benchmarks/lanes.py`` wrote
docs/tutorial.md                               docs/tutorial.ipynb, whose outputs are not kept
=============================================  ====================================================
"""

from __future__ import annotations

import functools
import json
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from dask_fabric.bench.results import Results, Row, read
from dask_fabric.bench.tables import facts_line, number, render
from dask_fabric.config.table import keys, sections
from dask_fabric.keys import Key, Section
from dask_fabric.paths.ofi.kinds import KINDS
from dask_fabric.text_table import table
from dask_fabric.wire.states import transitions

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "dask_fabric"
RESULTS = ROOT / "benchmarks" / "results"


def made() -> dict[Path, str]:
    """Give the content of every file."""
    protocol, configuration = DOCS / "wire-protocol.md", DOCS / "configuration.md"
    readme, benchmarks = ROOT / "README.md", DOCS / "benchmarks.md"
    shm, architecture = DOCS / "shm.md", DOCS / "architecture.md"
    ecosystem, ofi, lanes = DOCS / "ecosystem.md", DOCS / "ofi.md", DOCS / "lanes.md"
    return {
        architecture: _filled(architecture, {"states": diagram()}),
        protocol: _filled(protocol, {"states": diagram()}),
        configuration: _filled(configuration, {"keys": "".join(_key_table())}),
        PACKAGE / "dask_fabric.yaml": "".join(_yaml()),
        PACKAGE / "dask_fabric-schema.yaml": yaml.safe_dump(_schema(), sort_keys=False, width=96),
        readme: _filled(readme, {"figures": "".join((*_chart(), *_figures()))}),
        benchmarks: _filled(benchmarks, {"figures": "".join(_all_figures())}),
        shm: _filled(shm, {"figures": "".join(_shm_figures())}),
        lanes: _filled(lanes, {"figures": "".join(_lanes())}),
        ofi: _filled(
            ofi,
            {"providers": "".join(_providers()), "figures": "".join(_ofi_figures())},
        ),
        ecosystem: _filled(ecosystem, {"objects": "".join(_objects())}),
        DOCS / "tutorial.md": "\n".join(_tutorial()),
    }


def _filled(page: Path, contents: dict[str, str]) -> str:
    """Give the text of a page with new content between the two marks of each name."""
    text = page.read_text()
    for name, content in contents.items():
        begin, end = f"<!-- docs/generate.py: {name} -->\n", f"<!-- end of {name} -->\n"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = before + begin + content + end + after
    return text


# ---------------------------------------------------------------- the states of a connection


def diagram() -> str:
    """Give the diagram of one half of a connection, in Mermaid."""
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR", "    [*] --> GREETING"]
    for state, events in transitions().items():
        by_next: dict[str, list[str]] = {}
        for event, following in events.items():
            by_next.setdefault(following, []).append(event)
        lines += [
            f"    {state} --> {following}: {', '.join(named)}"
            for following, named in by_next.items()
            if (state, following) != ("DONE", "DONE")
        ]
    return "\n".join([*lines, "    DONE --> [*]", "```"]) + "\n"


# ---------------------------------------------------------------- the configuration

_COMMENT_COLUMN = 30
_TYPES = {
    "size": {
        "description": "A number of bytes, such as 67108864 or 64 MiB.",
        "type": ["string", "integer"],
        "minimum": 0,
    },
    "duration": {
        "description": "A time, such as 10s, 500 ms or a number of seconds.",
        "type": ["string", "number"],
        "minimum": 0,
    },
}


def _providers() -> Iterator[str]:
    yield "| provider | network | by default | variables | what it needs |\n"
    yield "| --- | --- | --- | --- | --- |\n"
    for kind in KINDS:
        default = "if there is a device" if kind.network and kind.auto else ""
        variables = " ".join(f"`{name}={value}`" for name, value in kind.variables.items())
        network = kind.network or "in software"
        yield f"| `{kind.name}` | {network} | {default} | {variables} | {kind.needs} |\n"


def _key_table() -> Iterator[str]:
    yield "| key | default | unit | meaning |\n| --- | --- | --- | --- |\n"
    for name, key in keys().items():
        yield f"| `fabric.{name}` | `{_value(key.default)}` | {key.unit} | {key.about} |\n"


def _yaml() -> Iterator[str]:
    yield "# Made by docs/generate.py from the keys of the configuration.\n"
    yield "fabric:\n"
    for name, one in sections().items():
        if isinstance(one, Key):
            yield _commented(f"  {name}: {_value(one.default)}", one.comment) + "\n"
            continue
        yield _commented(f"  {name}:", one.comment)
        for part, key in one.keys.items():
            yield _commented(f"    {part}: {_value(key.default)}", key.comment)
        yield "\n"


def _commented(line: str, comment: str) -> str:
    return f"{line:<{_COMMENT_COLUMN}}# {comment}\n" if comment else f"{line}\n"


def _value(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _schema() -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "fabric": _object(
                "The fabric:// communication backend of Dask distributed.",
                {name: _of(one) for name, one in sections().items()},
            )
        },
        "$defs": _TYPES,
    }


def _of(one: Section | Key) -> dict[str, Any]:
    if isinstance(one, Key):
        return {**one.schema, "description": _plain(one.about)}
    return _object(one.about, {part: _of(key) for part, key in one.keys.items()})


def _object(about: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "description": about,
        "properties": properties,
    }


def _plain(markdown: str) -> str:
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", markdown).replace("`", "")


# ---------------------------------------------------------------- figures

SUITES = ("comm", "tls", "work")  # as `make figures` calls its files
SHOWN = (  # in the README's table
    ("round trip of a tiny message, p50", "round trip of a tiny message"),
    ("small messages one way", "small messages one way"),
    ("numpy 64 kB, acknowledged", "array of 64 kB, acknowledged"),
    ("numpy 1 MB, acknowledged", "array of 1 MB, acknowledged"),
    ("numpy 100 MB, acknowledged", "array of 100 MB, acknowledged, not read"),
    ("numpy 100 MB, busy receiver", "the same, receiver's tasks hold the GIL"),
    ("connects, 32 at once", "connects, 32 at once"),
    ("(x + x.T).sum(), 8000 x 8000 in chunks of 1000", "(x + x.T).sum(), 8000 x 8000"),
)
CHART = (  # and in its chart, beside an array that the receiver reads
    ("round trip of a tiny message, p50", "round trip"),
    ("small messages one way", "small messages"),
    ("numpy 64 kB, acknowledged", "64 kB"),
    ("numpy 1 MB, acknowledged", "1 MB"),
    ("fetch of 400 MB, worker to worker", "fetch 400 MB"),
    ("(x + x.T).sum(), 8000 x 8000 in chunks of 1000", "x + x.T"),
    ("connects, 32 at once", "connects"),
)


@functools.cache
def runs(suite: str) -> list[Results]:
    """Give the runs of one suite, the first one first."""
    return [read(path) for path in sorted(RESULTS.glob(f"{suite}-*.json"))]


def together(runs: Sequence[Results]) -> Results:
    """Give one result with the rounds of all runs."""
    rows: dict[tuple[str, str], Row] = {}
    for run in runs:
        for row in run.rows:
            known = rows.setdefault(
                (row.scenario, row.name), replace(row, rounds={}, histograms={})
            )
            for column, values in row.rounds.items():
                known.rounds.setdefault(column, []).extend(values)
    return replace(runs[0], rows=list(rows.values()), warnings=[])


def _chart() -> Iterator[str]:
    """Yield a chart of the README's figures, in Mermaid."""
    found = _shown()
    ratios = {label: found[name].times_better("fabric", "tcp") or 0.0 for name, label in CHART}
    ratios["100 MB, summed"] = _with_sum()
    labels = ", ".join(f'"{label}"' for label in ratios)
    yield "```mermaid\nxychart-beta horizontal\n"
    yield '    title "fabric:// against tcp://, within a host: times better"\n'
    yield f"    x-axis [{labels}]\n"
    yield f'    y-axis "times" 0 --> {math.ceil(max(ratios.values()))}\n'
    yield f"    bar [{', '.join(map(_times, ratios.values()))}]\n```\n\n"


def _with_sum() -> float:
    """Give how many times faster than by tcp 100 MB are handed over and read."""
    rows = json.loads((RESULTS / "shm.json").read_text())["hand_over"]
    (row,) = (row for row in rows if row["nbytes"] == 10**8 and row["reads"])
    return row["tcp_ms"] / row["shm_ms"]


def _shown() -> dict[str, Row]:
    return {row.name: row for suite in ("comm", "work") for row in together(runs(suite)).rows}


def _figures() -> Iterator[str]:
    yield "| figure | unit | tcp | fabric | times better | in single runs | floor |\n"
    yield "| --- | --- | --- | --- | --- | --- | --- |\n"
    found = _shown()
    for name, title in SHOWN:
        row = found[name]
        floor = row.floor()
        cells = (
            title,
            row.unit,
            number(row.median("tcp")),
            number(row.median("fabric")),
            _times(row.times_better("fabric", "tcp")),
            _range(row),
            f"{number(row.median(floor))} ({floor})" if floor else "",
        )
        yield f"| {' | '.join(cells)} |\n"
    yield "\nWithin a host, large arrays are mapped, not copied. A receiver that also reads 100 MB "
    yield f"(its sum) has the\nresult {_with_sum():.1f} times as fast as by `tcp`: see "
    yield "[shared memory](docs/shm.md).\n"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


def _range(row: Row) -> str:
    """Give the least and the largest ratio of the single runs."""
    ratios = [
        found
        for suite in SUITES
        for run in runs(suite)
        for one in run.rows
        if (one.scenario, one.name) == (row.scenario, row.name)
        and (found := one.times_better("fabric", "tcp"))
    ]
    return f"{_times(min(ratios))} to {_times(max(ratios))}"


def _all_figures() -> Iterator[str]:
    for suite in SUITES:
        found = runs(suite)
        all_of_them = together(found)
        load = statistics.median(run.facts["load_average"] for run in found)
        all_of_them.facts = {**all_of_them.facts, "load_average": load}
        facts = facts_line(all_of_them.facts)
        count = "One run" if len(found) == 1 else f"{len(found)} runs together"
        yield f"\n{count}: {facts}\n{render(all_of_them, markdown=True).removeprefix(facts)}\n\n"


def _shm_figures() -> Iterator[str]:
    found = json.loads((RESULTS / "shm.json").read_text())
    yield f"\nOne run: {facts_line(found['facts'])}\n\n"
    yield "\n".join(table(_hand_over(found["hand_over"]), has_head=True, markdown=True))
    yield "\n\nTime of NumPy's operations in the memory file; in ordinary memory it is 1:\n\n"
    yield "\n".join(table(_operations(found["numpy"]), has_head=True, markdown=True))
    yield "\n\n"


def _hand_over(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Compare the hand-over of an array by tcp, cma and shm, a line for each size."""
    head = ["array", "tcp, ms", "cma, ms", "shm, ms", "8 bytes, ms", "tcp / shm"]
    lines = [[*head, "cma / shm", "CPU: cma / shm"]]
    for row in rows:
        tcp, cma, shm = (row[f"{name}_ms"] for name in ("tcp", "cma", "shm"))
        lines.append(
            [
                f"{row['nbytes'] // 10**6} MB{', and its sum' if row['reads'] else ''}",
                *(f"{value:.2f}" for value in (tcp, cma, shm)),
                f"{row['tiny_ms']:.2f}" if "tiny_ms" in row else "",
                f"{tcp / shm:.1f}",
                f"{cma / shm:.1f}",
                f"{row['cma_cpu'] / row['shm_cpu']:.1f}",
            ]
        )
    return lines


def _operations(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Give the time in the file in units of that in ordinary memory, a column for each size."""
    ratios = {(row["name"], row["nbytes"]): row["file_ms"] / row["ordinary_ms"] for row in rows}
    names, sizes = (tuple(dict.fromkeys(of)) for of in zip(*ratios, strict=True))
    return [
        ["operation", *(f"{nbytes // 10**6} MB" for nbytes in sizes)],
        *([name, *(f"{ratios[name, nbytes]:.2f}" for nbytes in sizes)] for name in names),
    ]


def _lanes() -> Iterator[str]:
    """Give what lanes bring where each flow is capped, and what they cost elsewhere."""
    found = json.loads((RESULTS / "lanes.json").read_text())
    yield f"\nOne run: {facts_line(found['facts'])}\n\n"
    capped = {row["lanes"]: row for row in found["capped"]}
    one = capped["1"]["mb_per_second"]
    lines = [["`fabric.lanes.count`", "MB/s", "of that many times one connection"]]
    for count, row in capped.items():
        rate = row["mb_per_second"]
        if count == "auto":
            of_one = f"it settles at {row['connections'] - 1}, after {row['rounds'] - 8} transfers"
        else:
            flows = int(count.removeprefix("raw "))
            of_one = f"{rate / one / flows:.2f}"
        name = {"raw 1": "one socket alone"}.get(count, f"`{count}`")
        if count.startswith("raw") and flows > 1:
            name = f"{flows} sockets alone"
        lines.append([name, f"{rate:.1f}", of_one])
    cap, size = found["rate_mb_per_second"], capped["1"]["mb"]
    yield f"Arrays of {size} MB on a link that caps each flow at {cap} MB/s:\n\n"
    yield "\n".join(table(lines, has_head=True, markdown=True))
    yield "\n\nOn a link without a cap, MB/s, medians of the turns, and lowest and highest:\n\n"
    yield "\n".join(table(_uncapped(found["uncapped"]), has_head=True, markdown=True))
    yield "\n\n"


def _uncapped(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    rates: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        rates.setdefault((row["mb"], row["lanes"]), []).append(row["mb_per_second"])
    sizes = dict.fromkeys(size for size, _ in rates)
    lines = [["array", "1 lane", "8 lanes", "`auto`", "one socket alone", "`auto` / 1 lane"]]
    for size in sizes:
        medians = {count: statistics.median(rates[size, count]) for count in ("1", "auto")}
        cells = []
        for count in ("1", "8", "auto", "raw 1"):
            of = rates[size, count]
            cells.append(f"{statistics.median(of):.0f} ({min(of):.0f} to {max(of):.0f})")
        lines.append([f"{size} MB", *cells, f"{medians['auto'] / medians['1']:.2f}"])
    return lines


def _ofi_figures() -> Iterator[str]:
    """Compare the path `ofi` with libfabric's own benchmark, by two providers."""
    head = ["provider", "array", "`tcp` of Dask, GB/s", "path `ofi`, GB/s", "`fi_pingpong`, GB/s"]
    lines = [[*head, "`ofi` / `fi_pingpong`"]]
    for provider in ("tcp", "shm"):
        results = read(RESULTS / f"ofi-{provider}.json")
        if provider == "tcp":
            yield f"\n{facts_line(results.facts)}\n\n"
        for row in results.rows:
            tcp, own, floor = map(row.median, ("tcp", "fabric+ofi", "fi_pingpong"))
            assert tcp and own and floor  # measured together
            size = row.name.removeprefix("numpy ").removesuffix(", acknowledged")
            rates = [f"{rate:.2f}" for rate in (tcp, own, floor)]
            lines.append([f"`{provider}`", size, *rates, f"{own / floor:.1f}"])
    yield "\n".join(table(lines, has_head=True, markdown=True))
    yield "\n\n"


def _objects() -> Iterator[str]:
    """Compare fetches of objects of other libraries, a line for each kind."""
    found = read(RESULTS / "objects.json")
    alone, with_read = (found.of(scenario) for scenario in ("fetch", "fetch and read"))
    head = ["object", "frames", "mostly", "by", "tcp, ms", "fabric, ms", "times faster"]
    lines = [[*head, "read too: tcp, ms", "fabric, ms", "times faster"]]
    for rows in zip(alone, with_read, strict=True):
        about = rows[0].parameters
        lines.append([rows[0].name, about["count"], _mostly(about), _paths(about["paths"])])
        for row in rows:
            ratio = row.times_better("fabric", "tcp")
            lines[-1] += [number(row.median("tcp")), number(row.median("fabric")), _times(ratio)]
    size, rounds = found.options["nbytes"] // 10**6, found.options["rounds"]
    yield f"\nOne run, about {size} MB each, medians of {rounds}: {facts_line(found.facts)}\n\n"
    yield "\n".join(table(lines, has_head=True, markdown=True))
    yield "\n\n"
    yield from (f"Warning of the run: {warning}.\n\n" for warning in found.warnings)


def _mostly(about: dict[str, Any]) -> str:
    """Say how most bytes of an object become frames."""
    ways = {"own": "own memory", "copied": "a copy", "pickled": "inside the pickle"}
    return ways[max(ways, key=about.__getitem__)]


def _paths(moved: dict[str, int]) -> str:
    """Name the paths that carried a part worth naming, the largest first."""
    total = sum(moved.values())
    carried = sorted(moved, key=moved.__getitem__, reverse=True)
    return ", ".join(path for path in carried if moved[path] > 0.02 * total)


# ---------------------------------------------------------------- the tutorial


def _tutorial() -> Iterator[str]:
    """Yield the lines of the notebook as a page.

    Its blocks are marked `py`: those marked `python` must run as saved files, where code that
    starts workers needs a guard.
    """
    yield "<!-- made by docs/generate.py from tutorial.ipynb -->\n"
    for cell in json.loads((DOCS / "tutorial.ipynb").read_text())["cells"]:
        text = "".join(cell["source"])
        yield f"{text}\n" if cell["cell_type"] == "markdown" else f"```py\n{text}\n```\n"


if __name__ == "__main__":
    for path, content in made().items():
        path.write_text(content)
