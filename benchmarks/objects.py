"""What it takes to fetch objects of other libraries from another worker, by ``tcp`` and ``fabric``.

Two clusters of two workers, one for each protocol, take turns. In each round an object is made anew
on one worker, and a task on the other one reads all of it. ``docs/generate.py`` makes the table of
docs/ecosystem.md from what this writes to ``benchmarks/results/objects.json``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse
import sparse
import torch
import xarray as xr
from distributed import Client, wait
from distributed.protocol import deserialize, serialize

import dask_fabric
from dask_fabric.bench.machine import NoiseWatch, facts
from dask_fabric.bench.results import Results, Row, noise_warnings
from dask_fabric.bench.tables import render
from dask_fabric.bench.work.local import start_cluster, worker_addresses

PROTOCOLS = ["tcp", "fabric"]
PATHS = ("shm", "cma", "stream")
ALONE, WITH_READ = "fetch", "fetch and read"  # the scenarios
LARGE_BYTES = 64 << 10
PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Kind:
    """A kind of object.

    Attributes
    ----------
    make : callable
        Make one of about so many bytes, always with the same content.
    read : callable
        Read all of it, fast.
    equal : callable
        Whether two of them are equal.
    write : callable, optional
        Change its first value, in place; None if it cannot be changed.
    """

    make: Callable[[int], Any]
    read: Callable[[Any], object]
    equal: Callable[[Any, Any], bool]
    write: Callable[[Any], None] | None = None


def floats(nbytes: int) -> np.ndarray:
    """Make numbers from 0 to 1."""
    return np.random.default_rng(0).random(nbytes // 8)


def integers(nbytes: int) -> np.ndarray:
    """Make whole numbers from 0 to 999."""
    return np.random.default_rng(0).integers(0, 1000, nbytes // 8)


def words(nbytes: int) -> pa.Array:
    """Make words of some 10 bytes, each with an offset of 8 bytes."""
    lexicon = pa.array([f"word {i:04}" for i in range(1000)], pa.large_string())
    return pa.compute.take(lexicon, integers(nbytes // 17 * 8))


def times(nbytes: int) -> pd.Series:
    """Make times with a time zone."""
    return pd.Series(pd.date_range("2000", periods=nbytes // 8, freq="s", tz="Europe/Berlin"))


def csr(nbytes: int) -> scipy.sparse.csr_matrix:
    """Make a sparse matrix of 1000 rows, half of which is zero."""
    count = nbytes // 12
    places = np.arange(count, dtype=np.int32) * 2 % (count // 500)
    rows = np.linspace(0, count, 1001).astype(np.int32)
    return scipy.sparse.csr_matrix((floats(count * 8), places, rows), (1000, count // 500))


def coo(nbytes: int) -> sparse.COO:
    """Make a sparse vector, half of which is zero."""
    count = nbytes // 16
    return sparse.COO(np.arange(count)[None, :] * 2, floats(count * 8) + 1, (count * 2,))


def frame_kind(make: Callable[[int], Any], value: object) -> Kind:
    """Give the kind of a DataFrame of one column."""

    def write(frame: pd.DataFrame) -> None:
        frame.iloc[0, 0] = value

    return Kind(
        lambda nbytes: pd.DataFrame({"a": make(nbytes)}),
        lambda frame: frame.a.max(),
        lambda one, other: one.equals(other) and (one.dtypes == other.dtypes).all(),
        write,
    )


def set_first(array: Any) -> None:
    """Change the first value of an array."""
    array[0] = -1


def set_first_datum(array: Any) -> None:
    """Change the first value of an array that has its values in `data`."""
    array.data[0] = -1


def same_arrays(one: Any, other: Any) -> bool:
    """Whether two arrays are equal, with NaN, and of one dtype."""
    return one.dtype == other.dtype and np.array_equal(one, other)


def same_masked(one: np.ma.MaskedArray, other: np.ma.MaskedArray) -> bool:
    """Whether data and masks are equal."""
    return same_arrays(one.data, other.data) and same_arrays(one.mask, other.mask)


def same_coo(one: sparse.COO, other: sparse.COO) -> bool:
    """Whether coordinates, data and shapes are equal."""
    return (
        one.shape == other.shape
        and same_arrays(one.coords, other.coords)
        and same_arrays(one.data, other.data)
    )


def same_csr(one: Any, other: Any) -> bool:
    """Whether two sparse matrices of SciPy have the same arrays."""
    return one.shape == other.shape and all(
        same_arrays(getattr(one, part), getattr(other, part))
        for part in ("data", "indices", "indptr")
    )


def same_tensors(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether tensors are equal, and both need a gradient or do not."""
    return torch.equal(one, other) and one.requires_grad == other.requires_grad


def write_tensor(tensor: torch.Tensor) -> None:
    """Change the first value, also of a parameter."""
    with torch.no_grad():
        tensor[0] = -1


KINDS = {
    "NumPy array": Kind(floats, np.sum, same_arrays, set_first),
    "NumPy masked array": Kind(
        lambda nbytes: np.ma.masked_less(floats(nbytes * 8 // 9), 0.5),
        np.ma.sum,
        same_masked,
        set_first,
    ),
    "NumPy datetimes": Kind(
        lambda nbytes: integers(nbytes).astype("M8[s]"), np.max, same_arrays, set_first
    ),
    "pandas, floats": frame_kind(floats, -1.0),
    "pandas, Arrow strings": frame_kind(
        lambda nbytes: pd.Series(words(nbytes).to_pandas(), dtype="str"), "new"
    ),
    "pandas, strings as Python objects": frame_kind(
        lambda nbytes: pd.Series(words(nbytes * 17 // 12).to_pylist(), dtype=object), "new"
    ),
    "pandas, categories": frame_kind(
        lambda nbytes: pd.Categorical.from_codes(
            integers(nbytes * 4).astype("i2"), [f"word {i:04}" for i in range(1000)]
        ).as_ordered(),
        "word 0001",
    ),
    "pandas, times with a zone": frame_kind(times, pd.Timestamp("1999", tz="Europe/Berlin")),
    "pandas, nullable integers": frame_kind(
        lambda nbytes: pd.array(integers(nbytes * 8 // 9), "Int64"), -1
    ),
    "PyArrow table": Kind(
        lambda nbytes: pa.table({"a": floats(nbytes // 25 * 8), "b": words(nbytes // 25 * 17)}),
        lambda table: (pc.sum(table["a"]), pc.max(pc.binary_length(table["b"]))),
        pa.Table.equals,
    ),
    "Polars DataFrame": Kind(
        lambda nbytes: pl.DataFrame({"a": floats(nbytes // 2), "b": integers(nbytes // 2)}),
        lambda frame: frame.sum(),
        pl.DataFrame.equals,
    ),
    "sparse COO": Kind(coo, lambda array: array.sum(), same_coo, set_first_datum),
    "SciPy csr_matrix": Kind(csr, lambda array: array.sum(), same_csr, set_first_datum),
    "SciPy csr_array": Kind(
        lambda nbytes: scipy.sparse.csr_array(csr(nbytes)),
        lambda array: array.sum(),
        same_csr,
        set_first_datum,
    ),
    "PyTorch tensor": Kind(
        lambda nbytes: torch.from_numpy(floats(nbytes)), torch.sum, same_tensors, write_tensor
    ),
    "PyTorch parameter": Kind(
        lambda nbytes: torch.nn.Parameter(torch.from_numpy(floats(nbytes))),
        torch.sum,
        same_tensors,
        write_tensor,
    ),
    "xarray Dataset": Kind(
        lambda nbytes: xr.Dataset(
            {"a": ("x", floats(nbytes // 2)), "b": ("x", integers(nbytes // 2))},
            attrs={"unit": "K"},
        ),
        lambda dataset: dataset.sum().load(),
        xr.Dataset.identical,
        lambda dataset: dataset.a.__setitem__(0, -1),
    ),
}


def make(name: str, nbytes: int) -> Any:
    """Make an object, as a task."""
    return KINDS[name].make(nbytes)


def read(thing: Any, name: str) -> float:
    """Read an object, as a task; give the seconds that it took."""
    begin = time.perf_counter()
    KINDS[name].read(thing)
    return time.perf_counter() - begin


def way(thing: Any) -> dict[str, int]:
    """Give how the bytes of an object become frames.

    Returns
    -------
    dict
        ``own``: bytes that are sent from the object's own memory; ``copied``: bytes of buffers that
        serialization makes; ``pickled``: bytes inside the pickle; ``count``: the number of frames.
    """
    header, frames = serialize(thing)
    _, again = serialize(thing)  # at the same addresses only if nothing is copied
    found = {"own": 0, "copied": 0, "pickled": 0, "count": len(frames)}
    for index, (one, other) in enumerate(zip(map(view, frames), map(view, again), strict=True)):
        if header["serializer"] == "pickle" and index == 0:
            found["pickled"] = one.nbytes
        else:
            found["own" if address(one) == address(other) else "copied"] += one.nbytes
    return found


def arrives_in_place(thing: Any) -> bool:
    """Whether a received object uses the memory of its frames, without a copy."""
    header, frames = serialize(thing)
    received = [np.array(view(frame)) for frame in frames]
    made = deserialize(header, [memoryview(frame) for frame in received])
    places = [address(one) for one in map(view, buffers(made)) if one.nbytes >= LARGE_BYTES]
    return bool(places) and all(
        any(0 <= place - address(frame) < frame.nbytes for frame in received) for place in places
    )


def buffers(thing: Any) -> list:
    """Give the memory of an object, as far as it can be seen."""
    if isinstance(thing, pd.DataFrame) and hasattr(thing.a.array, "__arrow_array__"):
        thing = pa.table({"a": thing.a.array.__arrow_array__()})
    if isinstance(thing, pa.Table):  # serialization would copy it
        chunks = [chunk for column in thing.columns for chunk in column.chunks]
        return [buffer for chunk in chunks for buffer in chunk.buffers() if buffer]
    return serialize(thing)[1]


def view(frame: Any) -> np.ndarray:
    """Give the bytes of a frame."""
    return np.frombuffer(frame, np.uint8) if memoryview(frame).nbytes else np.empty(0, np.uint8)


def address(array: np.ndarray) -> int:
    """Give where the memory of an array begins."""
    return array.__array_interface__["data"][0]


def received(client: Client, worker: str) -> dict[str, int]:
    """Give the bytes that a worker has received so far, by path."""
    rows = client.run(dask_fabric.statistics, workers=[worker])[worker]["peers"]
    return {
        path: sum(row["bytes_received"] for row in rows if row["path"] == path) for path in PATHS
    }


class Site:
    """A cluster of one protocol."""

    def __init__(self, protocol: str, stack: ExitStack) -> None:
        cluster = stack.enter_context(start_cluster(protocol))
        self.client = stack.enter_context(Client(cluster, set_as_default=False))
        self.left, self.right = worker_addresses(self.client)

    def fetch(self, name: str, nbytes: int) -> tuple[float, float, dict[str, int]]:
        """Give the ms of a fetch, those with the reading, and the bytes by path."""
        at_left = {"workers": [self.left], "pure": False}
        at_right = {"workers": [self.right], "pure": False}
        made = self.client.submit(make, name, nbytes, **at_left)
        with self.client.as_current():
            wait(made, timeout=PATIENCE_SECONDS)
        before = received(self.client, self.right)
        begin = time.perf_counter()
        read_seconds = self.client.submit(read, made, name, **at_right).result(PATIENCE_SECONDS)
        seconds = time.perf_counter() - begin
        after = received(self.client, self.right)
        moved = {path: after[path] - before[path] for path in PATHS}
        return (seconds - read_seconds) * 1e3, seconds * 1e3, moved


def measure(sites: dict[str, Site], name: str, nbytes: int, rounds: int) -> Iterable[Row]:
    """Measure one kind; the first round warms up, and is dropped."""
    thing = make(name, nbytes)
    about = {"nbytes": nbytes, **way(thing), "in_place": arrives_in_place(thing)}
    del thing
    rows = [Row(scenario, name, "ms", False, parameters=about) for scenario in (ALONE, WITH_READ)]
    for turn in range(rounds + 1):
        for protocol in PROTOCOLS[:: -1 if turn % 2 else 1]:
            *found, moved = sites[protocol].fetch(name, nbytes)
            if turn:
                for row, ms in zip(rows, found, strict=True):
                    row.add(protocol, ms)
            if protocol == "fabric":
                about["paths"] = moved
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="a part of a name; default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--nbytes", type=int, default=64_000_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 GiB"})
    asked = options.kinds or [""]
    names = [name for name in KINDS if any(part.lower() in name.lower() for part in asked)]
    rows: list[Row] = []
    about, watch = facts(), NoiseWatch()
    with ExitStack() as stack:
        sites = {protocol: Site(protocol, stack) for protocol in PROTOCOLS}
        for name in names:
            print(name, file=sys.stderr, flush=True)
            rows += measure(sites, name, options.nbytes, options.rounds)
    warnings = [*watch.warnings(), *noise_warnings(rows, PROTOCOLS)]
    results = Results(about, vars(options), PROTOCOLS, rows, warnings=warnings)
    print(render(results, markdown=False))
    if options.json:
        options.json.write_text(results.as_json())


if __name__ == "__main__":
    main()
