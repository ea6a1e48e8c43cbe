"""Clusters on this host, and queries to their workers."""

from __future__ import annotations

from distributed import Client, LocalCluster, Worker
from distributed.security import Security


def start_cluster(scheme: str, worker_count: int = 2) -> LocalCluster:
    """Start worker processes with one thread each, on the scheme, without a dashboard."""
    return LocalCluster(
        n_workers=worker_count,
        threads_per_worker=1,
        protocol=scheme,
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # its HTTP server always runs
        memory_limit=0,
        security=Security.temporary() if scheme.endswith("tls") else None,
    )


def _address(dask_worker: Worker) -> str:
    return dask_worker.address


def worker_addresses(client: Client) -> list[str]:
    """Give the addresses of all workers; the first ones are on different hosts, if possible."""
    addresses = sorted(client.run(_address))
    by_host: dict[str, list[str]] = {}
    for address in addresses:
        by_host.setdefault(address.rpartition(":")[0], []).append(address)
    firsts = [there[0] for there in by_host.values()]
    return [*firsts, *(address for address in addresses if address not in firsts)]


def _sent_bytes(dask_worker: Worker) -> float:
    shuffled = (
        value
        for key, value in dask_worker.digests_total.items()
        if isinstance(key, tuple)
        and key[0] == "p2p"
        and key[2:] == ("background-comms", "process", "bytes")
    )
    return dask_worker.transfer_outgoing_bytes_total + sum(shuffled)


def moved_bytes(client: Client) -> int:
    """Give the bytes that the workers have sent for fetches and shuffles, by Dask's counters."""
    return int(sum(client.run(_sent_bytes).values()))
