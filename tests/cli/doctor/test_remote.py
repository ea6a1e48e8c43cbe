"""Asking a live server, and addresses with something else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from importlib.metadata import version

import dask.config
import pytest
from distributed import Nanny, Scheduler, Worker
from distributed.comm import listen
from tests.conftest import NO_DASHBOARD

from dask_fabric.cli.doctor import remote
from dask_fabric.cli.doctor.pair import _PING_COUNT
from dask_fabric.cli.doctor.remote import ask, full_address
from dask_fabric.comm.network.reachability import explain
from dask_fabric.errors import UnavailableError


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote, "_CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(remote, "_ANSWER_SECONDS", 5.0)


def scheduler(protocol: str = "fabric", **arguments) -> Scheduler:
    return Scheduler(
        protocol=protocol, host="127.0.0.1", port=0, validate=True, **NO_DASHBOARD, **arguments
    )


async def reason_of(address: str) -> str:
    with pytest.raises(Exception) as caught:
        await ask(address)
    reason = explain(caught.value)
    assert reason and "\n" not in reason
    return reason


@pytest.mark.parametrize("unix_sockets", [True, False])
async def test_a_scheduler_and_a_worker(unix_sockets):
    with dask.config.set({"fabric.unix-sockets": unix_sockets}):
        async with scheduler() as server, Worker(server.address, host="127.0.0.1") as worker:
            pairs = {"Scheduler": await ask(server.address), "Worker": await ask(worker.address)}
    for kind, pair in pairs.items():
        assert pair.kind == kind
        assert pair.control_stream == ("unix" if unix_sockets else "tcp")
        assert ("unix" in pair.used) is unix_sockets
        assert set(pair.paths.values()) <= set(pair.used)
        assert pair.trials == {path: "" for path in pair.paths.values() if path != "stream"}
        assert pair.cipher is None
        assert 0 < pair.round_trip_seconds < 1 and 0 < pair.connect_seconds < 10
        here, there = pair.versions["distributed"]
        assert here == there
        assert pair.versions["python"][0] == pair.versions["python"][1]
        assert pair.statistics["messages_sent"] > 0
    assert pairs["Scheduler"].identity == server.id


async def test_a_frame_that_is_too_small_for_the_path_tries_nothing():
    with dask.config.set({"fabric.cma.threshold": "2 MiB"}):
        async with scheduler() as server:
            pair = await ask(server.address)
    assert pair.trials == {}
    assert pair.paths["host"] in pair.used


async def test_a_nanny_tells_only_our_version():
    async with scheduler() as server, Nanny(server.address, host="127.0.0.1") as nanny:
        pair = await ask(nanny.address)
    own = version("dask-fabric")
    assert (pair.kind, pair.versions) == ("Nanny", {"dask-fabric": (own, own)})


async def test_an_encrypted_pair(temporary_security, certificates):
    async with scheduler("fabric+tls", security=temporary_security) as server:
        with dask.config.set(certificates):
            pair = await ask(server.address)
    assert pair.cipher and {"tls", "stream"} == set(pair.used)


async def test_tls_without_certificates():
    assert "no certificates" in await reason_of("fabric+tls://127.0.0.1:9")


async def test_nobody_listens():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert "refused" in await reason_of(f"fabric://127.0.0.1:{unused.getsockname()[1]}")


async def test_a_server_of_another_protocol():
    async with scheduler("tcp") as server:
        reason = await reason_of(server.address.replace("tcp://", "fabric://"))
    assert "tcp://" in reason


async def test_something_that_is_silent():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reason = await reason_of(f"fabric://127.0.0.1:{silent.getsockname()[1]}")
    assert "imed out" in reason


@contextlib.asynccontextmanager
async def answering(*answers):
    """A fabric listener that is not a server of Dask."""
    over = asyncio.Event()

    async def handle(comm):
        for answer in answers:
            await comm.read()
            await comm.write(answer)
        await over.wait()
        comm.abort()

    async with listen("fabric://127.0.0.1:0", handle) as listener:
        yield listener.contact_address
        over.set()


async def test_a_frame_that_is_not_echoed(monkeypatch):
    monkeypatch.setattr(remote, "_FRAME_SECONDS", 0.2)
    pongs = [1] * _PING_COUNT
    async with answering({"type": "Odd"}, *pongs) as address:
        found = await ask(address)
    if found.paths["host"] == "stream":
        pytest.skip("no path beside the stream here")
    assert found.trials == {"cma": "a frame was not echoed within 0.2 seconds"}
    assert "cma" not in found.used


async def test_a_server_that_takes_no_frame():
    with dask.config.set({"fabric.limits.message": "64 KiB"}):
        async with scheduler() as server:
            found = await ask(server.address)
    if found.paths["host"] == "stream":
        pytest.skip("no path beside the stream here")
    assert "could not be echoed" in found.trials["cma"]


@pytest.mark.parametrize("answer", ["odd", 5, [1], {"status": "uncaught-error"}])
async def test_answers_that_no_server_gives(answer):
    async with answering(answer) as address:
        assert "does not answer 'identity'" in await reason_of(address)


async def test_no_answer(monkeypatch):
    monkeypatch.setattr(remote, "_ANSWER_SECONDS", 0.2)
    async with answering() as address:
        assert await reason_of(address) == "connected, but it did not answer within 0.2 seconds"


def test_addresses():
    assert full_address("10.0.0.1:8786") == "fabric://10.0.0.1:8786"
    assert full_address("fabric+ucx://host:1") == "fabric+ucx://host:1"
    for address in ("tcp://host:1", "ucx://host:1", "://host:1"):
        with pytest.raises(UnavailableError, match="not one of dask-fabric's schemes"):
            full_address(address)


def test_reasons_are_one_printable_line():
    assert explain(OSError("a\n\x1b[31mb")) == "a ?[31mb"
    assert explain(TimeoutError()) == "TimeoutError"
    outer = OSError("timed out after 5 s")
    outer.__cause__ = ConnectionRefusedError(111, "refused")
    assert explain(outer) == "[Errno 111] refused"
    outer.__cause__ = TimeoutError()
    assert explain(outer) == "timed out after 5 s"
