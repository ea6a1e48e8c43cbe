"""Choosing the paths of a pair of processes, by a pure function of both hellos.

Both sides call `Agreement.choose` with the same two hellos and the same failed probes of the
client. So both choose the same paths, and give the same reason for each path that is not used.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import msgpack

from dask_fabric import providers
from dask_fabric.errors import ProtocolError
from dask_fabric.paths.provider import CUDA, HOST, Pair, Provider
from dask_fabric.wire.hello import STREAM, Hello, is_reasons, unpack_map

_CHOICES_LIMIT = 16
_NOTHING_FOUND = b"\x80"  # an empty map


@dataclass(frozen=True)
class Choice:
    """The paths that a pair has agreed on.

    Parameters
    ----------
    ordered : mapping of str to tuple of str
        The paths of large frames, for each kind of memory that both sides have. Each frame travels
        by the first path that accepts it. Device frames on the stream are staged in host memory.
    refused : mapping of str to str
        The paths that are not in use, each with the reason; a key is the path's name, and for GPU
        memory followed by `` (cuda)``.
    """

    ordered: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, str]

    @property
    def paths(self) -> dict[str, str]:
        """The last path for each kind of memory: it takes every large frame."""
        return {memory: names[-1] for memory, names in self.ordered.items()}

    @functools.cached_property
    def opened(self) -> dict[str, tuple[str, ...]]:
        """The paths except the stream, in order, each with the kinds of memory that it carries."""
        opened: dict[str, tuple[str, ...]] = {}
        for provider in providers.found():
            memory = tuple(one for one, names in self.ordered.items() if provider.name in names)
            if memory:
                opened[provider.name] = memory
        return opened

    def without(self, path: str, reason: str) -> Choice:
        """Give the choice of a side that cannot use a chosen *path* after all."""
        lost = self.opened.get(path, ())
        ordered = {
            memory: tuple(name for name in names if name != path) or (STREAM,)
            for memory, names in self.ordered.items()
        }
        return Choice(ordered, {**self.refused, **{_key(path, memory): reason for memory in lost}})


class Agreement:
    """The paths that the hellos of a pair allow, before any was probed.

    Parameters
    ----------
    client, server : Hello

    Attributes
    ----------
    insisted : tuple of Provider
        The paths that the scheme of either side insists on.
    candidates : tuple of Provider
        The paths, except the stream, against which neither hello objects.
    """

    def __init__(self, client: Hello, server: Hello) -> None:
        schemes = client.scheme, server.scheme
        known = providers.found()
        self.insisted = tuple(one for one in known if one.scheme and one.scheme in schemes)
        self._kinds = _kinds(client, server)
        self._objections = {
            (one.name, memory): _objection(one, client, server, memory, one in self.insisted)
            for memory in self._kinds
            for one in known
            if memory in one.memory
        }
        self.candidates = tuple(
            one for one in known if any(self.objection(one, memory) == "" for memory in self._kinds)
        )
        self._choices: dict[tuple, Choice] = {}  # by failed probes; mostly there are none

    def objection(self, provider: Provider, memory: str = HOST) -> str | None:
        """Give the reason why the pair cannot use a path, or "".

        None if the path does not carry frames of that memory.
        """
        return self._objections.get((provider.name, memory))

    def choose(self, found: Mapping[str, str]) -> Choice:
        """Choose the paths for each kind of memory.

        Parameters
        ----------
        found : mapping of str to str
            Paths whose probe failed on one side, with that side and the reason.
        """
        key = tuple(found.items())
        if key not in self._choices:
            if len(self._choices) > _CHOICES_LIMIT:
                self._choices.clear()
            self._choices[key] = self._chosen(found)
        return self._choices[key]

    def _chosen(self, found: Mapping[str, str]) -> Choice:
        ordered, refused = {}, {}
        for memory in self._kinds:
            names: list[str] = []
            best = ""  # the first path that accepts every frame: later ones are not needed
            for provider in providers.found():
                reason = self.objection(provider, memory)
                if reason is None:
                    continue
                reason = reason or found.get(provider.name, "")
                if reason or best:
                    refused[_key(provider.name, memory)] = reason or f"{best} is better"
                    continue
                names.append(provider.name)
                if not provider.takes_only:
                    best = provider.name
            if best:
                refused[_key(STREAM, memory)] = f"{best} is better"
            else:
                names.append(STREAM)
            ordered[memory] = tuple(names)
        return _shared(tuple(ordered.items()), tuple(refused.items()))


# Most comms of a process make one of a few choices.
@functools.lru_cache(maxsize=64)
def _shared(ordered: tuple, refused: tuple) -> Choice:
    return Choice(dict(ordered), dict(refused))


# Cached by identity: over Unix sockets a process sends the same hello each time, and equal hellos
# are decoded to the same object.
agreement = functools.lru_cache(maxsize=256)(Agreement)


def by_side(side: str, found: Mapping[str, str]) -> dict[str, str]:
    """Prefix each reason with the side that found it."""
    return {path: f"{side}: {reason}" for path, reason in found.items()} if found else {}


def _objection(provider: Provider, client: Hello, server: Hello, memory: str, insists: bool) -> str:
    name = provider.name
    for side, hello in (("client", client), ("server", server)):
        if name in hello.refused:
            return f"{side}: {hello.refused[name]}"
        if name not in hello.paths:
            return f"{side}: its version does not know this path"
    same_host = bool(client.boot) and client.boot == server.boot
    if provider.within_host and not same_host:
        return "the two processes are on different hosts"
    for side, hello in (("client", client), ("server", server)):
        description = hello.described.get(name)
        if not description:
            return f"{side}: its hello has no description of this path: use the same release"
        if not provider.check(description):
            return f"{side}: its hello has an invalid description of this path"
    pair = Pair(client.described[name], server.described[name], memory, same_host, insists)
    return provider.objection(pair)


def _kinds(client: Hello, server: Hello) -> tuple[str, ...]:
    """Name the kinds of memory that both have."""
    return (HOST, CUDA) if CUDA in client.memory and CUDA in server.memory else (HOST,)


def _key(path: str, memory: str) -> str:
    return path if memory == HOST else f"{path} ({memory})"


def encode_found(found: Mapping[str, str]) -> bytes:
    """Encode the client's failed probes as the content of a PATHS record."""
    return msgpack.packb(dict(found))


def decode_found(content: bytes) -> dict[str, str]:
    """Decode the content of a PATHS record.

    Raises
    ------
    ProtocolError
        It is not a map of paths to reasons.
    """
    if content == _NOTHING_FOUND:
        return {}
    found = unpack_map(content, "the client's record of paths")
    if not is_reasons(found):
        raise ProtocolError(f"the client's record of paths is invalid: {found!r:.80}")
    return found
