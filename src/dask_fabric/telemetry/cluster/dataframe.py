"""The figures of a whole cluster as a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from distributed import Client

from dask_fabric.telemetry.cluster.processes import Process, ask

_QUANTILES = (0.5, 0.99)
_TIMES = ("send", "receive", "answer")


def of_cluster(client: Client) -> Any:
    """Give the result of `dask_fabric.statistics` with a client."""
    try:
        import pandas
    except ImportError as exc:
        raise ImportError(
            "dask_fabric.statistics(client) returns a pandas DataFrame: install pandas, or use "
            "client.run(dask_fabric.statistics)"
        ) from exc

    async def frame() -> Any:
        return pandas.DataFrame(table(await ask(client)), columns=columns())

    return client.sync(frame)


def columns() -> list[str]:
    """Give the names of the columns, also for a table without rows."""
    from dask_fabric.wire.metrics import Metrics

    figures = Metrics().as_dict()
    return ["role", "process", *_flat({"peer": "", "path": "", "open_comms": 0, **figures})]


def table(processes: Iterable[Process]) -> list[dict[str, Any]]:
    """Give one row for each process, peer and path."""
    return [
        {"role": process.role, "process": process.name, **_flat(row)}
        for process in processes
        for row in process.rows or ()
    ]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Replace the histograms by quantiles of the times."""
    flat = {name: value for name, value in row.items() if name != "histograms"}
    for time in _TIMES:
        counts = row["histograms"][f"{time}_ns"]["counts"]
        for q in _QUANTILES:
            flat[f"{time}_p{q * 100:g}_seconds"] = quantile(counts, q) / 1e9
    return flat


def quantile(counts: list[int], q: float) -> float:
    """Give the power of two that bounds a quantile of the values; nan without values.

    Parameters
    ----------
    counts : list of int
        As in `dask_fabric.wire.metrics.Metrics.as_dict`.
    q : float
        From 0 to 1.
    """
    left = q * sum(counts)
    for power, count in enumerate(counts):
        left -= count
        if count and left <= 0:
            return float(2**power)
    return float("nan")
