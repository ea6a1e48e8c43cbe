"""Two processes of this host that measure each path between them.

``python -m dask_fabric.cli.doctor.pair measure`` starts the other one, ``... serve``, and prints a
line of JSON for every path. They are separate processes so that a crash in a path's library does
not affect the doctor.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import dask.config
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol import to_serialize
from distributed.security import Security
from distributed.utils import wait_for

from dask_fabric import config, providers
from dask_fabric.comm.channels.negotiator import SchemeUnavailableError
from dask_fabric.comm.network.reachability import explain
from dask_fabric.paths.provider import Provider

STREAM, UNIX, TLS = _STREAMS = ("stream", "unix", "tls")
PATHS = (*_STREAMS, *providers.names())
_OF_ONE_PATH = {one.name: one.scheme for one in providers.found() if one.scheme}
SCHEMES = ("fabric", "fabric+tcp", "fabric+tls", *_OF_ONE_PATH.values())

_FRAME_BYTES = 64 << 20
_WARM_UP_COUNT = 2
_SEND_COUNT = 20
_SEND_SECONDS = 0.4
_PING_COUNT = 100
_CONNECT_SECONDS = 3.0
_PATH_SECONDS = 4.0


def roles(security: Security) -> list[str]:
    """Name the roles for which Dask's configuration has certificates."""
    names = ("worker", "scheduler", "client")
    configured = {role: security.get_tls_config_for_role(role) for role in names}
    return [role for role, one in configured.items() if one["ca_file"] and one["cert"]]


def has_encryption() -> bool:
    """Whether Dask's configuration has certificates, or ours encrypts by the shared key."""
    return bool(roles(Security())) or config.load().auth_encrypt


def _arguments(scheme: str, of: str) -> dict[str, Any]:
    """Give the arguments of a listener or connector of the scheme, from Dask's configuration."""
    security = Security()
    arguments = {"require_encryption": security.require_encryption}
    if scheme == "fabric+tls":
        role = next(iter(roles(security)), "client")
        arguments |= getattr(security, f"get_{of}_args")(role)
    return arguments


async def serve() -> None:
    """Listen on every scheme, print addresses or reasons, and serve until stdin ends."""
    addresses: dict[str, str] = {}
    refusals: dict[str, str] = {}
    for scheme in SCHEMES:
        try:
            listener = await listen(
                f"{scheme}://127.0.0.1:0", _answer, **_arguments(scheme, "listen")
            )
            addresses[scheme] = listener.contact_address
        except SchemeUnavailableError as exc:
            refusals[scheme] = exc.reason  # its message refers to the doctor
        except Exception as exc:
            refusals[scheme] = explain(exc)
    print(json.dumps({"addresses": addresses, "refusals": refusals}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def _answer(comm: Any) -> None:
    try:
        while True:
            await comm.read()  # the message is freed before the answer
            await comm.write("taken")
    except CommClosedError:
        pass


async def measure() -> None:
    """Start the other process, and print the result of each path as soon as it is known."""
    command = [sys.executable, "-m", __spec__.name, "serve"]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None  # a pipe
    try:
        # A library may have printed warnings before that line.
        served = json.loads(next((line for line in other.stdout if line.startswith("{")), ""))
        for path in PATHS:
            print(json.dumps(await _measure_path(path, **served)), flush=True)
    finally:
        other.kill()
        other.communicate()


async def _measure_path(
    path: str, addresses: dict[str, str], refusals: dict[str, str]
) -> dict[str, Any]:
    scheme = _scheme_of(path)
    if path == TLS and not has_encryption():
        return {"path": path, "reason": "Dask's configuration has no certificates"}
    settings = config.load()
    if path == UNIX and settings.auth_encrypt and settings.auth_encrypt_local:
        return {"path": path, "reason": "fabric.auth.encrypt-local: true means TLS within a host"}
    if scheme not in addresses:
        return {"path": path, "reason": refusals[scheme]}
    # For the Unix socket switch other paths off, so that frames stay on it.
    others = [f"{one.name}.enabled" for one in providers.found()] if path == UNIX else []
    off = {f"{config.SECTION}.{name}": False for name in others if name in config.KEYS}
    try:
        with dask.config.set(off):
            return await wait_for(_try_path(path, addresses[scheme]), _PATH_SECONDS)
    except asyncio.TimeoutError:
        return {"path": path, "reason": f"it did not answer within {_PATH_SECONDS:.0f} seconds"}
    except Exception as exc:
        return {"path": path, "reason": explain(exc)}


def _scheme_of(path: str) -> str:
    if path == STREAM:
        must = Security().require_encryption or config.load().auth_encrypt
        return "fabric+tls" if must else "fabric+tcp"
    return {TLS: "fabric+tls", **_OF_ONE_PATH}.get(path, "fabric")


async def _try_path(path: str, address: str) -> dict[str, Any]:
    arguments = _arguments(address.partition("://")[0], "connection")
    comm = await connect(address, _CONNECT_SECONDS, **arguments)
    try:
        figures = comm.statistics()
        if path not in used_paths(figures, comm.extra_info):
            reason = figures["refused"].get(path) or _why_not_unix()
            return {"path": path, "reason": reason, "instead": figures["paths"]["host"]}
        bandwidth = await _bandwidth(comm, path)
        if reason := why_not_moved(path, comm.statistics()):
            return {"path": path, "reason": reason}
        return {
            "path": path,
            "bandwidth_bytes_per_second": bandwidth,
            "round_trip_seconds": await round_trip(comm, "ping"),
        }
    finally:
        comm.abort()


def _why_not_unix() -> str:
    """Give the reason why the Unix socket is not in use; the comm does not know it."""
    if not config.load().unix_sockets:
        return "fabric.unix-sockets is false"
    return "the connection was made by TCP: the Unix socket could not be used"


def used_paths(figures: dict[str, Any], extra_info: dict[str, Any]) -> set[str]:
    """Name the paths in use between a pair, by the statistics of its comm."""
    found = {STREAM, *itertools.chain.from_iterable(figures["path_order"].values())}
    if figures["control_stream"] == "unix":
        found.add(UNIX)
    if extra_info.get("cipher"):
        found.add(TLS)
    return found


def why_not_moved(path: str, figures: dict[str, Any]) -> str:
    """Give the reason why large frames did not travel by *path*, or "".

    Parameters
    ----------
    path : str
        A path in use, from `used_paths`.
    figures : dict
        The statistics of the comm.
    """
    if path in _STREAMS:
        return ""  # these are the control stream, which carried everything
    moved = figures["traffic"][path]
    if moved["fallbacks_sent"] or moved["fallbacks_received"]:
        return "the two agreed on it, but it failed: large frames were sent on the stream instead"
    return "" if moved["frames_sent"] else "the two agreed on it, but no large frame used it"


async def _bandwidth(comm: Any, path: str) -> float:
    """Give the best bandwidth of some large frames, each answered, in bytes per second."""
    provider = providers.by_name().get(path, Provider())
    frame = provider.new_frame(_FRAME_BYTES)
    frame[:] = 1
    message = {"frame": to_serialize(frame)}
    for _ in range(_WARM_UP_COUNT):
        await exchange(comm, message)
    seconds: list[float] = []
    while len(seconds) < _SEND_COUNT and sum(seconds) < _SEND_SECONDS:
        seconds.append(await exchange(comm, message))
    return _FRAME_BYTES / min(seconds)  # the best: least disturbed by other load on the host


async def round_trip(comm: Any, message: Any) -> float:
    """Give the median round trip time of a small message, in seconds."""
    return statistics.median([await exchange(comm, message) for _ in range(_PING_COUNT)])


async def exchange(comm: Any, message: Any) -> float:
    """Send a message and read the answer; give the time in seconds."""
    begin = time.perf_counter()
    await comm.write(message)
    await comm.read()
    return time.perf_counter() - begin


if __name__ == "__main__":
    asyncio.run({"serve": serve, "measure": measure}[sys.argv[1]]())
