"""Which path the frames of a pair take: a pure function of what both sides say of themselves.

Both sides call `choose` with the same two hellos and the same later findings of the client, so both
know the same answer, and for each path that is not taken the same reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgpack

from dask_fabric.errors import ProtocolError
from dask_fabric.wire.hello import Hello, is_reasons, unpack_map

# The best first; `stream` is always there.
PREFERENCE = {"host": ("cma", "ucx", "stream")}
UCX_SCHEME = "fabric+ucx"
# Beginnings of the names of UCX's transports.
SHARED_MEMORY = ("posix", "sysv", "xpmem", "cma", "knem")
RDMA = ("rc_", "dc_", "ud_", "srd", "gga_")
REASON_LENGTH_LIMIT = 256  # of a name in a hello


@dataclass(frozen=True)
class Choice:
    """What a pair has agreed on.

    Parameters
    ----------
    paths : mapping of str to str
        The path of large frames, for each kind of memory.
    refused : mapping of str to str
        The paths that are not in use, each with the reason.
    """

    paths: Mapping[str, str]
    refused: Mapping[str, str]


def objection(path: str, client: Hello, server: Hello, found: Mapping[str, str]) -> str:
    """Give the reason why a pair cannot use *path*, or "".

    Parameters
    ----------
    path : str
    client, server : Hello
    found : mapping of str to str
        Paths, with reasons, that the client gave up after it had read the server's hello.
    """
    for side, hello in (("client", client), ("server", server)):
        if path in hello.refused:
            return f"{side}: {hello.refused[path]}"
        if path not in hello.paths:
            return f"{side}: its version does not know this path"
    if path == "cma":
        if not (client.cma and server.cma):
            return "a hello does not describe it"
        if client.boot != server.boot:
            return "the two processes are on different hosts"
    elif path == "ucx":
        reason = _objection_to_ucx(client, server)
        if reason:
            return reason
    if path in found:
        return f"client: {found[path]}"
    return ""


def _objection_to_ucx(client: Hello, server: Hello) -> str:
    if not (client.ucx and server.ucx):
        return "a hello does not describe it"
    versions = client.ucx["version"], server.ucx["version"]
    if versions[0] != versions[1]:
        return "client: UCX {}, server: UCX {}; both must have the same version".format(*versions)
    if UCX_SCHEME in (client.scheme, server.scheme):
        return ""
    common = set(client.ucx["transports"]) & set(server.ucx["transports"])
    if client.boot and client.boot == server.boot:
        useful, what = SHARED_MEMORY, "shared memory"
    else:
        useful, what = RDMA, "RDMA"
    if any(name.startswith(useful) for name in common):
        return ""
    return f"UCX has no {what} in common between the two, and the stream is as good as its TCP"


def insists_on_ucx(client: Hello, server: Hello) -> bool:
    """Whether one of the two schemes takes nothing but UCX for large frames."""
    return UCX_SCHEME in (client.scheme, server.scheme)


def candidates(client: Hello, server: Hello) -> list[str]:
    """Give the paths, besides the stream, against which neither hello objects."""
    paths = dict.fromkeys(path for paths in PREFERENCE.values() for path in paths)
    return [p for p in paths if p != "stream" and not objection(p, client, server, {})]


def choose(client: Hello, server: Hello, found: Mapping[str, str]) -> Choice:
    """Choose the path of each kind of memory.

    Parameters
    ----------
    client, server : Hello
    found : mapping of str to str
        As for `objection`.
    """
    chosen, refused = {}, {}
    for memory, preference in PREFERENCE.items():
        for path in preference:
            reason = objection(path, client, server, found) if path != "stream" else ""
            if reason:
                refused[path] = reason
            elif memory in chosen:
                refused[path] = f"{chosen[memory]} is better"
            else:
                chosen[memory] = path
    used = set(chosen.values())
    return Choice(chosen, {path: why for path, why in refused.items() if path not in used})


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
    found = unpack_map(content)
    if not is_reasons(found):
        raise ProtocolError(f"the client's record of paths is invalid: {found!r:.80}")
    return found
