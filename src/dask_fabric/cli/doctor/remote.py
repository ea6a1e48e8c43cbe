"""A live server, asked over a comm of its own: what the pair uses, and why."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import Any

from distributed.comm import connect
from distributed.protocol import to_serialize
from distributed.security import Security
from distributed.utils import wait_for
from distributed.versions import get_versions

from dask_fabric.cli.doctor.pair import (
    SCHEMES,
    STREAM,
    exchange,
    roles,
    round_trip,
    used_paths,
    why_not_moved,
)
from dask_fabric.comm.network.reachability import explain
from dask_fabric.errors import UnavailableError

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
_FRAME_SECONDS = 3.0
FRAME_BYTES = 1 << 20
_PING = {"op": "echo", "data": 1, "reply": True}
_TELL_VERSIONS = ("Scheduler", "Worker")


@dataclass(frozen=True)
class Pair:
    """This process and a server.

    Attributes
    ----------
    paths : dict of str to str
        The path of large frames that the two agreed on, by the kind of memory.
    trials : dict of str to str
        What became of a large frame of host memory that was sent by such a path: "" where it went
        by it, or the reason why not. A path that is not here has carried none.
    used : tuple of str
        All paths in use, the control stream's among them, but for those that a trial has failed.
    refused : dict of str to str
        Why another path is not in use.
    versions : dict of str to (str, str)
        Of the packages here and there.
    statistics : dict
        What the comm tells of itself.
    """

    address: str
    local_address: str
    peer_address: str
    kind: str | None
    identity: str | None
    control_stream: str
    cipher: str | None
    paths: dict[str, str]
    trials: dict[str, str]
    used: tuple[str, ...]
    refused: dict[str, str]
    connect_seconds: float
    round_trip_seconds: float
    versions: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)


def full_address(address: str) -> str:
    """Give an address with its scheme, which is ``fabric`` where it has none.

    Raises
    ------
    UnavailableError
        Its scheme is none of ours.
    """
    scheme, separator, _ = address.rpartition("://")
    if not separator:
        return f"fabric://{address}"
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise UnavailableError(f"{scheme}:// is not one of dask-fabric's schemes, {known}")
    return address


async def ask(address: str) -> Pair:
    """Connect to a server and ask it about itself.

    Raises
    ------
    Exception
        There is no Dask server of ours at that address.
    """
    security = Security()
    if address.startswith("fabric+tls://") and not roles(security):
        raise UnavailableError("Dask's configuration has no certificates (distributed.comm.tls)")
    arguments = security.get_connection_args(next(iter(roles(security)), "client"))
    begin = time.perf_counter()
    # What is asked for is plain data: nothing that a peer sends needs to be unpickled.
    comm = await connect(address, _CONNECT_SECONDS, deserialize=False, **arguments)
    connect_seconds = time.perf_counter() - begin
    try:
        return await wait_for(_ask(comm, address, connect_seconds), _ANSWER_SECONDS)
    except asyncio.TimeoutError:
        raise UnavailableError(
            f"it is connected, and gave no answer within {_ANSWER_SECONDS:g} seconds"
        ) from None
    finally:
        comm.abort()


async def _ask(comm: Any, address: str, connect_seconds: float) -> Pair:
    identity = await _request(comm, "identity")
    kind = identity.get("type")
    there = await _request(comm, "versions") if kind in _TELL_VERSIONS else {}
    round_trip_seconds = await round_trip(comm, _PING)
    trials = await _try_frame(comm, comm.statistics()["paths"]["host"])
    told = comm.statistics()
    failed = {path for path, reason in trials.items() if reason}
    cipher = (comm.extra_info.get("cipher") or (None,))[0]
    return Pair(
        address=address,
        local_address=comm.local_address,
        peer_address=comm.peer_address,
        kind=kind,
        identity=identity.get("id"),
        control_stream=told["control_stream"],
        cipher=cipher,
        paths=told["paths"],
        trials=trials,
        used=tuple(sorted(used_paths(told, comm.extra_info) - failed)),
        refused=dict(told.get("refused", {})),
        connect_seconds=connect_seconds,
        round_trip_seconds=round_trip_seconds,
        versions=_compare(get_versions(), there),
        statistics=told,
    )


async def _try_frame(comm: Any, path: str) -> dict[str, str]:
    """Have the server echo a large frame; the comm may be of no use after that."""
    if path == STREAM:
        return {}
    # Random, for no compression to make it small; bytes, for nothing to be unpickled there.
    message = {"op": "echo", "data": to_serialize(os.urandom(FRAME_BYTES)), "reply": True}
    try:
        await wait_for(exchange(comm, message), _FRAME_SECONDS)
    except asyncio.TimeoutError:
        return {path: f"a frame was not echoed within {_FRAME_SECONDS:g} seconds"}
    except Exception as exc:  # a report must come out
        return {path: f"a frame could not be echoed: {explain(exc)}"}
    told = comm.statistics()
    # It may be too small for the path as it is configured.
    return {path: why_not_moved(path, told)} if told["traffic"][path]["frames_sent"] else {}


async def _request(comm: Any, operation: str) -> dict[str, Any]:
    await comm.write({"op": operation, "reply": True})
    answer = await comm.read()
    if not isinstance(answer, dict) or answer.get("status") == "uncaught-error":
        raise UnavailableError(f"it does not answer {operation!r} as a Dask server does")
    return answer


def _compare(
    here: dict[str, Any], there: dict[str, Any]
) -> dict[str, tuple[str | None, str | None]]:
    """Pair the versions of packages that both sides tell."""
    here, there = _flat(here), _flat(there)
    return {name: (here[name], there[name]) for name in here if name in there}


def _flat(versions: dict[str, Any]) -> dict[str, str | None]:
    python = str(versions.get("host", {}).get("python", ""))
    return {**({"python": python} if python else {}), **versions.get("packages", {})}
