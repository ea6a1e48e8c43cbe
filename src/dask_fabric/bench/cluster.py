"""Measurements between the workers of a running cluster."""

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
        Its name, or its address without the scheme.
    host : str
        Name of its host.
    place : str
        Equal for workers without a network between them.
    """

    name: str
    address: str
    host: str
    place: str


@dataclass
class Cluster:
    """A client, the prepared workers, and the module of the arrays that they send."""

    client: Client
    workers: list[Worker]
    module: str = "numpy"

    @property
    def scheme(self) -> str:
        """The scheme of the workers' addresses."""
        return self.workers[0].address.partition("://")[0]

    def find(self, name: str) -> Worker:
        """Give the worker with a name or address.

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
        """Give the first worker, and one on another host if there is one."""
        first, *others = self.workers
        far = [one for one in others if one.place != first.place]
        return first, (far or others)[0]


@contextlib.contextmanager
def connected(where: dict[str, str | None]) -> Iterator[Client]:
    """Give a client of a scheduler, encrypted according to Dask's configuration.

    Parameters
    ----------
    where : dict
        ``address`` or ``scheduler_file``, as for `Client`.

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
    """Read the address in a scheduler file."""
    try:
        return str(json.loads(Path(scheduler_file).read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BenchError(
            f"{scheduler_file} is not a file that a scheduler wrote with --scheduler-file"
        ) from exc


@contextlib.contextmanager
def prepared(client: Client, module: str = "numpy") -> Iterator[Cluster]:
    """Have all workers answer measurements for the duration of the block.

    Raises
    ------
    BenchError
        There are fewer than two workers, or one of them cannot measure.
    """
    for sent in (agent, workers):
        cloudpickle.register_pickle_by_value(sent)
    try:
        try:
            answers = client.run(workers.prepare, module, on_error="return")
            yield Cluster(client, _named(_all_prepared(answers)), module)
        finally:
            client.run(workers.restore, on_error="ignore")
    finally:
        for sent in (agent, workers):
            cloudpickle.unregister_pickle_by_value(sent)


def _all_prepared(answers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    for address, answer in answers.items():
        if isinstance(answer, BaseException):
            raise BenchError(f"the worker at {address} cannot measure: {explain(answer)}")
    if len(answers) < 2:
        raise BenchError(f"at least two workers are needed, there is {len(answers) or 'none'}")
    return answers


def _named(answers: dict[str, dict[str, Any]]) -> list[Worker]:
    """Give the workers, sorted by name; a name that is an address loses its scheme."""
    named = ({**one, "name": one["name"].rpartition("://")[2]} for one in answers.values())
    found = [Worker(**one) for one in named]
    return sorted(found, key=lambda one: (one.name.isdigit() and int(one.name), one.name))


class WorkerPair:
    """Two workers, with the interface of `pairs.Pair`."""

    def __init__(self, cluster: Cluster, one: Worker, other: Worker) -> None:
        self.name = cluster.scheme
        self.pids: list[int] = []
        self._client, self._one, self._other = cluster.client, one, other
        self._module = cluster.module

    def can(self, verb: str, arguments: dict[str, Any]) -> bool:
        """Whether this can be measured here; comms support everything."""
        return True

    def ask(self, verb: str, hog: Hog = NO_HOG, **arguments: Any) -> dict[str, Any]:
        """Call `agent.Asker.do` on the first worker, on new comms."""
        question = [verb, arguments, hog]
        try:
            answers = self._client.run(
                workers.ask, self._other.address, question, self._module, ANSWER_SECONDS,
                workers=[self._one.address],
            )  # fmt: skip
        except Exception as exc:
            names = f"worker {self._one.name} to worker {self._other.name}"
            raise PairError(f"{names}: {exc or type(exc).__name__}") from exc
        return answers[self._one.address]

    def close(self) -> None:
        """Nothing stays open between measurements."""
