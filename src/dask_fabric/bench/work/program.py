"""Workloads on one cluster: ``python -m dask_fabric.bench.work.program``.

Each cluster has a process of its own, so that two protocols, or two libraries of a path, are never
in the same process. It reads a line of JSON, and prints one for each workload, and one when the
report is written.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from typing import Any

import dask
from distributed import Client, performance_report

from dask_fabric.bench.work.catalogue import WORKLOADS
from dask_fabric.bench.work.extent import Extent
from dask_fabric.bench.work.local import start_cluster
from dask_fabric.bench.work.sending import is_everywhere, send_as_they_are


def _client(stack: contextlib.ExitStack, config: dict[str, Any]) -> Client:
    """Connect to the given cluster, or to a new one."""
    if config["address"]:
        return stack.enter_context(Client(config["address"]))
    if config["scheduler_file"]:
        return stack.enter_context(Client(scheduler_file=config["scheduler_file"]))
    cluster = stack.enter_context(start_cluster(config["scheme"], config["worker_count"]))
    return stack.enter_context(Client(cluster))


def _run(client: Client, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Run a workload some times after a warm-up, and give the results."""
    try:
        run = WORKLOADS[name].prepare(client, Extent(**config["extent"]))
        outcomes = [run() for _ in range(1 + config["runs"])]
    except ImportError as exc:  # pandas, or what reads and shuffles frames
        return {"problem": f"{exc}: pip install 'dask-fabric[bench]' for all workers"}
    except Exception as exc:
        return {"problem": f"{type(exc).__name__}: {exc}"}
    if not all(outcome.right for outcome in outcomes):
        return {"problem": "the result is wrong"}
    return {"values": [outcome.value for outcome in outcomes[1:]]}


def _report(filename: str | None) -> contextlib.AbstractContextManager[Any]:
    return performance_report(filename=filename) if filename else contextlib.nullcontext()


def main() -> None:
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of a library must not be mistaken for an answer
    config = json.loads(sys.stdin.readline())
    # It logs a warning for every shuffle.
    logging.getLogger("distributed.shuffle._scheduler_plugin").setLevel(logging.ERROR)
    dask.config.set({"distributed.p2p.storage.disk": False})
    with contextlib.ExitStack() as stack:
        client = _client(stack, config)
        assert client.scheduler is not None  # the client is connected
        protocol = str(client.scheduler.address).partition("://")[0]
        print(json.dumps(protocol), file=output, flush=True)
        if not is_everywhere(client):
            send_as_they_are()
        with _report(config["profile"]):
            for name in config["workloads"]:
                print(json.dumps(_run(client, name, config)), file=output, flush=True)
        if config["profile"]:
            print(json.dumps("the report is written"), file=output, flush=True)


if __name__ == "__main__":
    main()
