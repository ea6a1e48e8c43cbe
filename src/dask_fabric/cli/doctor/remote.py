"""``dask fabric doctor --peer``: connects to a live server and reports what the pair uses."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from distributed.comm import connect
from distributed.protocol import to_serialize
from distributed.security import Security
from distributed.utils import wait_for
from distributed.versions import get_versions

from dask_fabric import config
from dask_fabric.cli.doctor.pair import (
    SCHEMES,
    STREAM,
    exchange,
    has_encryption,
    roles,
    round_trip,
    used_paths,
    why_not_moved,
)
from dask_fabric.comm.network import authentication
from dask_fabric.comm.network.reachability import explain
from dask_fabric.errors import UnavailableError

_PACKAGE = "dask-fabric"
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
        The result of sending a large frame of host memory by such a path: "" for success, or the
        reason for the failure. Paths without an entry were not tried.
    used : tuple of str
        All paths in use, including the control stream's, except those that failed a trial.
    refused : dict of str to str
        Why other paths are not in use.
    versions : dict of str to (str, str)
        Versions of the packages here and there.
    statistics : dict
        The statistics of the comm.
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
    """Give an address with its scheme, by default ``fabric``.

    Raises
    ------
    UnavailableError
        Its scheme is not one of ours.
    """
    scheme, separator, _ = address.rpartition("://")
    if not separator:
        return f"fabric://{address}"
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise UnavailableError(f"{scheme}:// is not one of dask-fabric's schemes, {known}")
    return address


async def ask(address: str) -> Pair:
    """Connect to a server, query it, and try the path.

    Raises
    ------
    Exception
        There is no Dask server with dask-fabric at that address.
    """
    await authentication.prepare(config.load())  # its error is clearer than that of connecting
    security = Security()
    if address.startswith("fabric+tls://") and not has_encryption():
        raise UnavailableError("Dask's configuration has no certificates (distributed.comm.tls)")
    arguments = security.get_connection_args(next(iter(roles(security)), "client"))
    begin = time.perf_counter()
    # The replies are plain data: nothing from the peer needs to be unpickled.
    comm = await connect(address, _CONNECT_SECONDS, deserialize=False, **arguments)
    connect_seconds = time.perf_counter() - begin
    try:
        return await wait_for(_ask(comm, address, connect_seconds), _ANSWER_SECONDS)
    except asyncio.TimeoutError:
        raise UnavailableError(
            f"connected, but it did not answer within {_ANSWER_SECONDS:g} seconds"
        ) from None
    finally:
        comm.abort()


async def _ask(comm: Any, address: str, connect_seconds: float) -> Pair:
    identity = await _request(comm, "identity")
    kind = identity.get("type")
    there = await _request(comm, "versions") if kind in _TELL_VERSIONS else {}
    round_trip_seconds = await round_trip(comm, _PING)
    trials = await _try_frame(comm, comm.statistics()["paths"]["host"])
    figures = comm.statistics()
    failed = {path for path, reason in trials.items() if reason}
    cipher = (comm.extra_info.get("cipher") or (None,))[0]
    return Pair(
        address=address,
        local_address=comm.local_address,
        peer_address=comm.peer_address,
        kind=kind,
        identity=identity.get("id"),
        control_stream=figures["control_stream"],
        cipher=cipher,
        paths=figures["paths"],
        trials=trials,
        used=tuple(sorted(used_paths(figures, comm.extra_info) - failed)),
        refused=dict(figures.get("refused", {})),
        connect_seconds=connect_seconds,
        round_trip_seconds=round_trip_seconds,
        versions={**_own_versions(figures), **_compare(get_versions(), there)},
        statistics=figures,
    )


async def _try_frame(comm: Any, path: str) -> dict[str, str]:
    """Have the server echo a large frame; a failure may leave the comm unusable."""
    if path == STREAM:
        return {}
    # Random, so that it cannot be compressed; bytes, so that the server unpickles nothing.
    message = {"op": "echo", "data": to_serialize(os.urandom(FRAME_BYTES)), "reply": True}
    try:
        await wait_for(exchange(comm, message), _FRAME_SECONDS)
    except asyncio.TimeoutError:
        return {path: f"a frame was not echoed within {_FRAME_SECONDS:g} seconds"}
    except Exception as exc:  # the report must be printed in any case
        return {path: f"a frame could not be echoed: {explain(exc)}"}
    figures = comm.statistics()
    # The frame may be below the configured threshold of the path.
    return {path: why_not_moved(path, figures)} if figures["traffic"][path]["frames_sent"] else {}


async def _request(comm: Any, operation: str) -> dict[str, Any]:
    await comm.write({"op": operation, "reply": True})
    answer = await comm.read()
    if not isinstance(answer, dict) or answer.get("status") == "uncaught-error":
        raise UnavailableError(f"it does not answer {operation!r} like a Dask server")
    return answer


def _own_versions(figures: dict[str, Any]) -> dict[str, tuple[str | None, str | None]]:
    """Give the versions of this package, by what the peer's hello says."""
    name, _, there = figures["peer_software"].partition(" ")
    return {name: (version(name), there)} if name == _PACKAGE else {}


def _compare(
    here: dict[str, Any], there: dict[str, Any]
) -> dict[str, tuple[str | None, str | None]]:
    """Pair the versions of packages that both sides report."""
    here, there = _flat(here), _flat(there)
    return {name: (here[name], there[name]) for name in here if name in there}


def _flat(versions: dict[str, Any]) -> dict[str, str | None]:
    python = str(versions.get("host", {}).get("python", ""))
    return {**({"python": python} if python else {}), **versions.get("packages", {})}
