"""Which path the frames of a pair take: a pure function of what both sides say of themselves.

Both sides call `choose` with the same two hellos and the same later findings of the client, so both
know the same answer, and for each path that is not taken the same reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgpack

from dask_fabric.errors import ProtocolError
from dask_fabric.wire.hello import Hello, is_reasons, unpack_map

# The best first; `stream` is always there.
PREFERENCE = {"host": ("cma", "ucx", "stream"), "cuda": ("ucx", "stream")}
UCX_SCHEME = "fabric+ucx"
# Beginnings of the names of UCX's transports.
SHARED_MEMORY = ("posix", "sysv", "xpmem")
RDMA = ("rc_", "dc_", "ud_", "srd", "gga_")
CUDA = ("cuda_ipc", "cuda_copy")
WITHIN_HOST = (*SHARED_MEMORY, "cuda_ipc")
# They carry no messages, or not between processes of which either may die.
SILENT = ("self", "cma", "knem", "cuda", "gdr_copy", "rocm", "ze_")
# What two processes that share memory have in common: keys of a hello. UCX looks at the first only.
SCOPES = {"ipc": "IPC namespaces", "pid": "pid namespaces", "user": "users"}
REASON_LENGTH_LIMIT = 256  # of a name in a hello


@dataclass(frozen=True)
class Choice:
    """What a pair has agreed on.

    Parameters
    ----------
    paths : mapping of str to str
        The path of large frames, for each kind of memory that both sides have. Frames of a device
        that go by the stream are brought to host memory first.
    refused : mapping of str to str
        The paths that are not in use, each with the reason: ``ucx`` for host memory, ``ucx (cuda)``
        for that of GPUs.
    """

    paths: Mapping[str, str]
    refused: Mapping[str, str]

    def without(self, path: str, reason: str) -> Choice:
        """Give what is left for a side that cannot use a chosen *path* after all."""
        lost = [memory for memory, chosen in self.paths.items() if chosen == path]
        paths = {**self.paths, **dict.fromkeys(lost, "stream")}
        return Choice(paths, {**self.refused, **{_key(path, memory): reason for memory in lost}})


def objection(
    path: str, client: Hello, server: Hello, found: Mapping[str, str], memory: str = "host"
) -> str:
    """Give the reason why a pair cannot use *path*, or "".

    Parameters
    ----------
    path : str
    client, server : Hello
    found : mapping of str to str
        Paths, with reasons, that the client gave up after it had read the server's hello.
    memory : str
        The kind of memory that the frames are in.
    """
    for side, hello in (("client", client), ("server", server)):
        if path in hello.refused:
            return f"{side}: {hello.refused[path]}"
        if path not in hello.paths:
            return f"{side}: its version does not know this path"
    if path == "cma":
        if client.boot != server.boot:
            return "the two processes are on different hosts"
        if not (client.cma and server.cma):
            return "a hello does not describe it"
    elif path == "ucx":
        reason = _objection_to_ucx(client, server, memory)
        if reason:
            return reason
    if path in found:
        return f"client: {found[path]}"
    return ""


def _objection_to_ucx(client: Hello, server: Hello, memory: str) -> str:
    if not (client.ucx and server.ucx):
        return "a hello does not describe it"
    versions = client.ucx["version"], server.ucx["version"]
    if versions[0] != versions[1]:
        return "client: UCX {}, server: UCX {}; both must have the same version".format(*versions)
    common = set(client.ucx["transports"]) & set(server.ucx["transports"])
    if memory == "cuda" and not _any_of(CUDA, common):
        return "UCX has neither cuda_ipc nor cuda_copy in common between the two"
    within_host = bool(client.boot) and client.boot == server.boot
    apart = _apart(client, server) if within_host else ""
    if apart not in ("", SCOPES["ipc"]) and _any_of(SHARED_MEMORY, common):
        return (
            f"UCX's shared memory fails between different {apart}, and UCX tries nothing else "
            "unless it is left out (UCX_TLS=^sm)"
        )
    if apart or not within_host:
        common = {name for name in common if not name.startswith(WITHIN_HOST)}
    if insists_on_ucx(client, server):
        works, rest = any(not name.startswith(SILENT) for name in common), "nor TCP"
    else:
        better = (*RDMA, *(WITHIN_HOST if memory == "cuda" else SHARED_MEMORY))
        works, rest = _any_of(better, common), "and the stream is as good as its TCP"
    return "" if works else f"{_lack(within_host, apart)} in common between the two, {rest}"


def _apart(client: Hello, server: Hello) -> str:
    """Name what keeps two processes of a host from sharing memory, by what both tell; or ""."""
    scopes = client.ucx.get("scope", {}), server.ucx.get("scope", {})
    for key, names in SCOPES.items():
        told = [scope[key] for scope in scopes if key in scope]
        if len(set(told)) > 1:
            return names
    return ""


def _lack(within_host: bool, apart: str) -> str:
    if apart:
        return f"UCX shares no memory between different {apart}, and has no RDMA"
    return f"UCX has {'neither shared memory nor' if within_host else 'no'} RDMA"


def _any_of(beginnings: tuple[str, ...], names: Iterable[str]) -> bool:
    return any(name.startswith(beginnings) for name in names)


def insists_on_ucx(client: Hello, server: Hello) -> bool:
    """Whether one of the two schemes takes nothing but UCX for large frames."""
    return UCX_SCHEME in (client.scheme, server.scheme)


def candidates(client: Hello, server: Hello) -> list[str]:
    """Give the paths, besides the stream, against which neither hello objects."""
    paths: list[str] = []
    for memory in _kinds(client, server):
        for path in PREFERENCE[memory]:
            if path == "stream" or path in paths or objection(path, client, server, {}, memory):
                continue
            paths.append(path)
    return paths


def choose(client: Hello, server: Hello, found: Mapping[str, str]) -> Choice:
    """Choose the path of each kind of memory.

    Parameters
    ----------
    client, server : Hello
    found : mapping of str to str
        As for `objection`.
    """
    chosen, refused = {}, {}
    for memory in _kinds(client, server):
        for path in PREFERENCE[memory]:
            reason = objection(path, client, server, found, memory) if path != "stream" else ""
            if not reason and memory not in chosen:
                chosen[memory] = path
            else:
                refused[_key(path, memory)] = reason or f"{chosen[memory]} is better"
    return Choice(chosen, refused)


def _kinds(client: Hello, server: Hello) -> tuple[str, ...]:
    """Name the kinds of memory that both have."""
    return ("host", "cuda") if "cuda" in client.memory and "cuda" in server.memory else ("host",)


def _key(path: str, memory: str) -> str:
    return path if memory == "host" else f"{path} ({memory})"


def encode_found(found: Mapping[str, str]) -> bytes:
    """Write what the client found, as it goes into the PATHS record."""
    return msgpack.packb(dict(found))


def decode_found(content: bytes) -> dict[str, str]:
    """Read what the client found.

    Raises
    ------
    ProtocolError
        It is no map of paths to reasons.
    """
    found = unpack_map(content, "the client's record of paths")
    if not is_reasons(found):
        raise ProtocolError(f"the client's record of paths is invalid: {found!r:.80}")
    return found
