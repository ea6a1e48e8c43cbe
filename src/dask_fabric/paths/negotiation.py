"""Which paths the frames of a pair take: a pure function of what both sides say of themselves.

Both sides call `choose` with the same two hellos and the same later findings of the client, so both
know the same answer, and for each path that is not taken the same reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgpack

from dask_fabric import providers
from dask_fabric.errors import ProtocolError
from dask_fabric.paths.provider import CUDA, HOST, Pair, Provider
from dask_fabric.wire.hello import STREAM, Hello, is_reasons, unpack_map

REASON_LENGTH_LIMIT = 256  # of a name in a hello


@dataclass(frozen=True)
class Choice:
    """What a pair has agreed on.

    Parameters
    ----------
    ordered : mapping of str to tuple of str
        The paths of large frames, for each kind of memory that both sides have: each frame takes
        the first that takes it. Frames of a device that go by the stream are brought to host memory
        first.
    refused : mapping of str to str
        The paths that are not in use, each with the reason: ``ucx`` for host memory, ``ucx (cuda)``
        for that of GPUs.
    """

    ordered: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, str]

    @property
    def paths(self) -> dict[str, str]:
        """For each kind of memory, the path of large frames that no path before it has taken."""
        return {memory: names[-1] for memory, names in self.ordered.items()}

    def memory_of(self, path: str) -> tuple[str, ...]:
        """Give the kinds of memory whose frames may take *path*."""
        return tuple(memory for memory, names in self.ordered.items() if path in names)

    def without(self, path: str, reason: str) -> Choice:
        """Give what is left for a side that cannot use a chosen *path* after all."""
        lost = self.memory_of(path)
        ordered = {
            memory: tuple(name for name in names if name != path) or (STREAM,)
            for memory, names in self.ordered.items()
        }
        return Choice(ordered, {**self.refused, **{_key(path, memory): reason for memory in lost}})


def objection(
    provider: Provider, client: Hello, server: Hello, found: Mapping[str, str], memory: str = HOST
) -> str:
    """Give the reason why a pair cannot use a path, or "".

    Parameters
    ----------
    provider : Provider
        Of the path.
    client, server : Hello
    found : mapping of str to str
        Paths, with reasons, that the client gave up after it had read the server's hello.
    memory : str
        The kind of memory that the frames are in.
    """
    name = provider.name
    described = []
    for side, hello in (("client", client), ("server", server)):
        if name in hello.refused:
            return f"{side}: {hello.refused[name]}"
        if name not in hello.paths:
            return f"{side}: its version does not know this path"
        described.append((side, hello.described.get(name)))
    same_host = bool(client.boot) and client.boot == server.boot
    if provider.within_host and not same_host:
        return "the two processes are on different hosts"
    for side, description in described:
        if not description:
            return "a hello does not describe it"
        if not provider.check(description):
            return f"{side}: its hello describes it in a way that makes no sense"
    insists = provider in insisted(client, server)
    pair = Pair(client.described[name], server.described[name], memory, same_host, insists)
    reason = provider.objection(pair)
    if not reason and name in found:
        reason = f"client: {found[name]}"
    return reason


def insisted(client: Hello, server: Hello) -> list[Provider]:
    """Give the providers of the paths that a scheme of the two takes, or none."""
    schemes = client.scheme, server.scheme
    return [one for one in providers.found() if one.scheme and one.scheme in schemes]


def candidates(client: Hello, server: Hello) -> list[Provider]:
    """Give the paths, besides the stream, against which neither hello objects."""
    kinds = _kinds(client, server)
    return [
        one
        for one in providers.found()
        if any(k in one.memory and not objection(one, client, server, {}, k) for k in kinds)
    ]


def choose(client: Hello, server: Hello, found: Mapping[str, str]) -> Choice:
    """Choose the paths for each kind of memory.

    Parameters
    ----------
    client, server : Hello
    found : mapping of str to str
        As for `objection`.
    """
    ordered, refused = {}, {}
    for memory in _kinds(client, server):
        names: list[str] = []
        best = ""  # the one that takes whatever those before it leave
        for provider in providers.found():
            if memory not in provider.memory:
                continue
            reason = objection(provider, client, server, found, memory)
            if reason or best:
                refused[_key(provider.name, memory)] = reason or f"{best} is better"
                continue
            names.append(provider.name)
            if provider.takes_all:
                best = provider.name
        if best:
            refused[_key(STREAM, memory)] = f"{best} is better"
        else:
            names.append(STREAM)
        ordered[memory] = tuple(names)
    return Choice(ordered, refused)


def _kinds(client: Hello, server: Hello) -> tuple[str, ...]:
    """Name the kinds of memory that both have."""
    return (HOST, CUDA) if CUDA in client.memory and CUDA in server.memory else (HOST,)


def _key(path: str, memory: str) -> str:
    return path if memory == HOST else f"{path} ({memory})"


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
