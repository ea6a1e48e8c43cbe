"""The figures of this process on the page ``/metrics`` of Dask's schedulers and workers.

That page shows prometheus_client's default registry. The first listener of a process registers our
collector there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from dask_fabric import providers
from dask_fabric.engine import backlog
from dask_fabric.jobs import completions
from dask_fabric.memory import admission, pool
from dask_fabric.telemetry import refused, registry, waits

_PEERS_SHOWN = 64  # pairs of peer and path with lines of their own
_COUNTERS = {
    "frames": "Frames, by direction",
    "fallbacks": "Messages whose offered frames were sent on the stream instead, by direction",
}
# Histograms, by name in `Metrics.as_dict`: the metric's name and description.
_SIZES = {
    "sent_message_bytes": ("dask_fabric_sent_message_bytes", "Sizes of messages sent"),
    "received_message_bytes": ("dask_fabric_received_message_bytes", "Sizes of messages received"),
}
_TIMES = {
    "send_ns": ("dask_fabric_send_seconds", "Time of one bulk send"),
    "receive_ns": ("dask_fabric_receive_seconds", "Time of one bulk receive or fetch"),
    "answer_ns": ("dask_fabric_answer_seconds", "Time from an offer to the peer's answer"),
}
# The powers of two that are bounds of buckets: sizes of 64 B to 64 GiB, times of 1 us to 69 s.
_SIZE_POWERS = range(6, 37, 2)
_TIME_POWERS = range(10, 37)

_collector: Any = None


def register() -> None:
    """Register the collector, once, if prometheus_client is installed."""
    global _collector
    if _collector is not None:
        return
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return
    _collector = FabricCollector()
    REGISTRY.register(_collector)


class FabricCollector:
    """Gives the figures of this process as Prometheus metrics."""

    def describe(self) -> list[Any]:
        """Give nothing, so that registering does not run a collection."""
        return []

    def collect(self) -> Iterator[Any]:
        """Give all metrics."""
        found = registry.totals(_PEERS_SHOWN)
        by_path = {path: of.as_dict() for path, of in registry.by_path(found).items()}
        return itertools.chain(
            _counters(by_path),
            _bytes(found),
            _waits(by_path),
            _histograms(by_path),
            _backlog(),
            _refused(),
            _gauges(by_path),
        )


def _counters(by_path: dict[str, dict[str, Any]]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily

    for name, text in _COUNTERS.items():
        family = CounterMetricFamily(f"dask_fabric_{name}", text, labels=["path", "direction"])
        for path, figures in by_path.items():
            for direction in ("sent", "received"):
                family.add_metric([path, direction], figures[f"{name}_{direction}"])
        yield family


def _bytes(found: registry.Totals) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(
        "dask_fabric_bytes",
        "Bytes moved, by peer, path and direction",
        labels=["peer", "path", "direction"],
    )
    for (peer, path), figures in found.items():
        for direction, nbytes in zip(("sent", "received"), figures.brief()[:2], strict=True):
            if nbytes:
                family.add_metric([peer, path, direction], nbytes)
    yield family


def _waits(by_path: dict[str, dict[str, Any]]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily

    moving = CounterMetricFamily(
        "dask_fabric_transfer_seconds", "Where the time of transfers went", labels=["path", "on"]
    )
    for path, figures in by_path.items():
        for wait in waits.MOVING:
            moving.add_metric([path, wait.name], figures[wait.field])
    yield moving
    for wait in waits.CODING:
        text = f"Time to {wait.name} payloads that are not tiny"
        spent = sum(figures[wait.field] for figures in by_path.values())
        yield CounterMetricFamily(f"dask_fabric_{wait.field}", text, value=spent)


def _backlog() -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    text = "Messages that waited because their peer had not read earlier ones"
    yield CounterMetricFamily("dask_fabric_waited_writes", text, value=backlog.waited_count())
    text = "Bytes that peers which are behind have not taken"
    yield GaugeMetricFamily("dask_fabric_backlog_bytes", text, value=backlog.total_bytes())
    text = "Large messages that waited for memory"
    wait_count = admission.statistics()["wait_count"]
    yield CounterMetricFamily("dask_fabric_waits_for_memory", text, value=wait_count)
    text = "Bytes of ended comms that peers may still be reading"
    held_bytes = completions.statistics()["held_bytes"]
    yield GaugeMetricFamily("dask_fabric_held_bytes", text, value=held_bytes)


def _refused() -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily

    text = "Connections, comms and messages that were refused"
    family = CounterMetricFamily("dask_fabric_refused", text, labels=["what"])
    for what, count in refused.counts().items():
        family.add_metric([what], count)
    yield family


def _histograms(by_path: dict[str, dict[str, Any]]) -> Iterator[Any]:
    from prometheus_client.core import HistogramMetricFamily

    for key, (name, text) in _SIZES.items():  # the stream counts messages: it carries their headers
        if "stream" in by_path:
            sizes = by_path["stream"]["histograms"][key]
            buckets = _buckets(sizes["counts"], _SIZE_POWERS, 1)
            yield HistogramMetricFamily(name, text, buckets=buckets, sum_value=sizes["sum"])
    for key, (name, text) in _TIMES.items():
        family = HistogramMetricFamily(name, text, labels=["path"])
        for path, figures in by_path.items():
            times = figures["histograms"][key]
            buckets = _buckets(times["counts"], _TIME_POWERS, 1e-9)
            family.add_metric([path], buckets, times["sum"] * 1e-9)
        yield family


def _buckets(counts: list[int], powers: range, unit: float) -> list[tuple[str, int]]:
    """Give cumulative buckets; `counts[i]` counts values up to ``2**i``."""
    sums = list(itertools.accumulate(counts)) or [0]
    shown = [(f"{2**i * unit:.12g}", sums[min(i, len(sums) - 1)]) for i in powers]
    return [*shown, ("+Inf", sums[-1])]


def _gauges(by_path: dict[str, dict[str, Any]]) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(
        "dask_fabric_unacknowledged_bytes",
        "Bytes on offer that peers have not fetched",
        labels=["path"],
    )
    for path, figures in by_path.items():
        if path != "stream":  # the stream has no frames on offer
            family.add_metric([path], figures["unacknowledged_bytes"])
    yield family
    pool_figures = pool.statistics()
    family = GaugeMetricFamily(
        "dask_fabric_pool_bytes", "Memory of the pool of receive buffers", labels=["state"]
    )
    for state in ("in_use", "idle"):
        family.add_metric([state], pool_figures[f"{state}_bytes"])
    yield family
    family = GaugeMetricFamily(
        "dask_fabric_path_figures",
        "Figures of a process that only one path has",
        labels=["path", "figure"],
    )
    for provider in providers.found():
        for figure, value in (provider.statistics() or {}).items():
            if isinstance(value, int | float):
                family.add_metric([provider.name, figure], value)
    yield family
    open_count = registry.open_count()
    yield GaugeMetricFamily("dask_fabric_open_comms", "Open comms", value=open_count)
