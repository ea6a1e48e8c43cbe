"""A running cluster, whose workers measure among themselves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
from distributed import Client

from dask_fabric.bench import agent, workers
from dask_fabric.bench.pairs import ANSWER_SECONDS, NO_HOG, Hog
from dask_fabric.comm.network.reachability import explain, reach
from dask_fabric.errors import BenchError, PairError

_CONNECT_SECONDS = 15


@dataclass(frozen=True)
class Worker:
    """One worker.

    Attributes
    ----------
    name : str
        As short as it is without doubt.
    host : str
        Name of its host.
    place : str
        The same for workers between which no network lies.
    """

    name: str
    address: str
    host: str
    place: str


@dataclass
class Cluster:
    """A client, the workers that were there when they were prepared, and whose arrays they send."""

    client: Client
    workers: list[Worker]
    module: str = "numpy"

    @property
    def scheme(self) -> str:
        """By which the workers talk."""
        return self.workers[0].address.partition("://")[0]

    def find(self, name: str) -> Worker:
        """The worker of a name or an address.

        Raises
        ------
        BenchError
            There is none, or more than one.
        """
        found = [one for one in self.workers if name in (one.name, one.address)]
        if len(found) != 1:
            known = ", ".join(one.name for one in self.workers[:20])
            raise BenchError(f"{len(found)} workers are called {name!r}; there are {known}")
        return found[0]

    def two(self) -> tuple[Worker, Worker]:
        """The first worker, and one as far from it as there is."""
        first, *others = self.workers
        far = [one for one in others if one.place != first.place]
        return first, (far or others)[0]


@contextlib.contextmanager
def connected(where: dict[str, str | None]) -> Iterator[Client]:
    """A client of a scheduler, as Dask's configuration encrypts it.

    Parameters
    ----------
    where : dict
        ``address`` or ``scheduler_file``, as `Client` takes them.

    Raises
    ------
    BenchError
        There is no scheduler.
    """
    address = where.get("address") or _written_address(str(where["scheduler_file"]))
    try:
        asyncio.run(reach(address, _CONNECT_SECONDS))
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, asyncio.TimeoutError, ValueError, TypeError, RuntimeError) as exc:
        raise BenchError(f"no scheduler at {address}: {explain(exc)}") from exc
    with client:
        yield client


def _written_address(scheduler_file: str) -> str:
    """What a scheduler has written there."""
    try:
        return str(json.loads(Path(scheduler_file).read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BenchError(
            f"{scheduler_file} is not what a scheduler writes with --scheduler-file"
        ) from exc


@contextlib.contextmanager
def prepared(client: Client, module: str = "numpy") -> Iterator[Cluster]:
    """Have all workers answer measurements for the time of the block.

    Raises
    ------
    BenchError
        There are fewer than two workers, or one of them cannot measure.
    """
    for sent in (agent, workers):
        cloudpickle.register_pickle_by_value(sent)
    try:
        try:
            told = client.run(workers.prepare, module, on_error="return")
            yield Cluster(client, _named(_all_prepared(told)), module)
        finally:
            client.run(workers.restore, on_error="ignore")
    finally:
        for sent in (agent, workers):
            cloudpickle.unregister_pickle_by_value(sent)


def _all_prepared(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    for address, answer in told.items():
        if isinstance(answer, BaseException):
            raise BenchError(f"the worker at {address} cannot measure: {explain(answer)}")
    if len(told) < 2:
        raise BenchError(f"two workers are needed at least, there is {len(told) or 'none'}")
    return told


def _named(told: dict[str, dict[str, Any]]) -> list[Worker]:
    """In the order of their names; one that is only an address loses the scheme."""
    found = [Worker(**{**one, "name": one["name"].rpartition("://")[2]}) for one in told.values()]
    return sorted(found, key=lambda one: (one.name.isdigit() and int(one.name), one.name))


class WorkerPair:
    """Two workers, with what a `pairs.Pair` has."""

    def __init__(self, cluster: Cluster, one: Worker, other: Worker) -> None:
        self.name = cluster.scheme
        self.pids: list[int] = []
        self._client, self._one, self._other = cluster.client, one, other
        self._module = cluster.module

    def can(self, verb: str, arguments: dict[str, Any]) -> bool:
        """Whether this can be measured here; a comm can do all."""
        return True

    def ask(self, verb: str, hog: Hog = NO_HOG, **arguments: Any) -> dict[str, Any]:
        """Do what `agent.Asker.do` does, on comms that are opened for it."""
        question = [verb, arguments, hog]
        try:
            told = self._client.run(
                workers.ask, self._other.address, question, self._module, ANSWER_SECONDS,
                workers=[self._one.address],
            )  # fmt: skip
        except Exception as exc:
            names = f"worker {self._one.name} to worker {self._other.name}"
            raise PairError(f"{names}: {exc or type(exc).__name__}") from exc
        return told[self._one.address]

    def close(self) -> None:
        """Nothing stays open between measurements."""
