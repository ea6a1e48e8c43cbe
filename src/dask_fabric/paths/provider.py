"""What a path is to all that comes before its first frame, and to all that tells of it.

Theory of operation
-------------------
A path has two halves. Its *provider*, here, answers for the process: whether the path can be used,
what a hello says of it, what keeps a pair of processes from using it, how it is configured, and
what the doctor has to say. Its `dask_fabric.wire.path.Path` moves the frames of one comm.

When a connection is made, both sides describe their paths in their hellos. Each asks the provider
of every path for an objection, by the two descriptions alone, so both give the same answer. Then
each side tries what is left (`Candidate.probe`), and the client tells the server what it found.
What is left then is opened, the path of the lowest rank first.

A provider of another package is found by an entry point, see `dask_fabric.providers`. Its module
is imported with the configuration, so it imports this module, `dask_fabric.keys` and what is light,
and the rest where it is used.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from dask_fabric.keys import Section

if TYPE_CHECKING:
    from dask_fabric.wire.path import Path

HOST, CUDA = "host", "cuda"


class Description(dict):
    """What a hello says of one path, with names as keys.

    Equal to itself alone: a provider gives the same object for as long as it says the same, and
    the hello that was made of it is then used again.
    """

    __slots__ = ()
    __eq__ = object.__eq__
    __ne__ = object.__ne__
    __hash__ = object.__hash__  # type: ignore[assignment]  # no dict has a hash; this one may


class Pair(NamedTuple):
    """Two processes that may come to use a path.

    Attributes
    ----------
    client, server : mapping
        What the hello of each says of the path; `Provider.check` has found both good.
    memory : {"host", "cuda"}
        The kind of memory that the frames are in.
    same_host : bool
        Whether the two are on one running system.
    insists : bool
        Whether the scheme of one of the two takes no other path.
    """

    client: Mapping[str, Any]
    server: Mapping[str, Any]
    memory: str
    same_host: bool
    insists: bool


class Peer(NamedTuple):
    """The other end of a connection, as one path sees it.

    Attributes
    ----------
    description : mapping
        What its hello says of the path.
    pid : int
        Its process: by the kernel over a Unix socket, where 0 means that it is hidden; over TCP as
        its hello says, which may be a lie.
    kernel_pid : int
        The same where the kernel says it, else 0.
    """

    description: Mapping[str, Any]
    pid: int
    kernel_pid: int


class HostKey:
    """A key that processes of one host can make for one connection, and nobody else.

    Parameters
    ----------
    boot : str
        What names the running system; no hello tells it over TCP.
    proof : str
        The public proof of knowing it, which is new for each connection.
    side : {"client", "server"}
        Whose hello the key is for.
    """

    def __init__(self, boot: str, proof: str, side: str) -> None:
        self._boot, self._proof = boot, proof
        self.key = self._digest(side)

    def exchange(self, offset: int, value: bytes) -> bytes:
        """Encipher or decipher bytes with those of the key from *offset* on: the two are the same.

        The first four are the process id's; the key has 32.
        """
        return bytes(a ^ b for a, b in zip(value, self.key[offset:], strict=False))

    def disguise(self, *texts: str) -> str:
        """Give a name that is the same on both sides where *texts* are; it tells nothing else."""
        return self._digest(*texts)[:16].hex()

    def _digest(self, *texts: str) -> bytes:
        content = "\0".join((self._proof, *texts)).encode()
        return hmac.digest(self._boot.encode(), content, hashlib.sha256)


@dataclass(frozen=True)
class Advice:
    """Something that costs speed, or does not work, and what to do about it."""

    about: str
    reason: str
    remedy: str


class Candidate:
    """A path that one connection may come to use.

    Parameters
    ----------
    description : mapping

    Attributes
    ----------
    description : mapping
        What the hello of this connection says of the path.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        self.description = description

    def probe(self, peer: Peer) -> str:
        """Try whether the path can be used with *peer*; give the reason why not, or "".

        Called by the event loop: it must not block.
        """
        return ""

    def open(self, peer: Peer, memory: Sequence[str]) -> Path:
        """Give the end of the path for this connection.

        Parameters
        ----------
        peer : Peer
        memory : sequence of str
            The kinds of memory that frames travel from by it.
        """
        raise NotImplementedError


class Provider:
    """One path, as a process can use it; made once, and without cost.

    Attributes
    ----------
    name : str
        In hellos, in the configuration (``fabric.NAME.*``), in statistics: a lower-case word.
    title : str
        What users call it.
    scheme : str
        The scheme of addresses that takes this path or none; empty where there is none.
    memory : tuple of str
        The kinds of memory of the frames that it can carry: ``host``, ``cuda``.
    rank : int
        Of two paths, frames take the one with the lower rank.
    takes_all : bool
        Whether it takes every large frame, so that no path of a higher rank is needed beside it.
    within_host : bool
        Whether it works between processes of one host alone.
    needs_direct_connection : bool
        Whether the end of the connection must be seen when it happens, so that no proxy may stand
        between the two.
    section : dask_fabric.keys.Section
        Its part of the configuration.
    environment : mapping of str to str
        Variables to set in a program whose standard output is read by others.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    scheme: ClassVar[str] = ""
    memory: ClassVar[tuple[str, ...]] = (HOST,)
    rank: ClassVar[int] = 50
    takes_all: ClassVar[bool] = True
    within_host: ClassVar[bool] = False
    needs_direct_connection: ClassVar[bool] = False
    section: ClassVar[Section] = Section("", {})
    environment: ClassVar[Mapping[str, str]] = {}

    # ---- the process

    def load(self) -> None:
        """Import what the methods below need, so that no connection waits for it.

        Called when the process imports what makes comms.
        """

    def configure(self, settings: Any) -> None:
        """Apply *settings* (those of this path) to the process; called again when they change."""

    async def prepare(self, settings: Any, insists: bool, host: str = "") -> str:
        """Find and start what `describe` tells of, without blocking the event loop.

        Called before each connection and each listener: it must cost nothing when it was done.

        Parameters
        ----------
        settings : named tuple
            Of this path.
        insists : bool
            Whether the scheme takes no other path.
        host : str
            That a listener is bound to.

        Returns
        -------
        str
            The reason why the path cannot be used, with the remedy; or "".
        """
        return ""

    def describe(self, settings: Any, insists: bool) -> Description | str:
        """Give what a hello says of this path, or the reason why this process does not use it.

        The whole of a hello is small: see "Hello" in ``docs/wire-protocol.md`` for the limits.
        """
        raise NotImplementedError

    def candidate(
        self, description: Mapping[str, Any], settings: Any, sock: socket.socket
    ) -> Candidate:
        """Begin to negotiate for the connection *sock*, with a description that `describe` gave."""
        raise NotImplementedError

    def statistics(self) -> Mapping[str, Any] | None:
        """Give what the process counts of this path, or None where that is nothing."""
        return None

    # ---- what hellos say; all of it pure

    def check(self, description: Mapping[str, Any]) -> bool:
        """Whether what a peer's hello says of this path makes sense; anybody may have sent it."""
        return True

    def objection(self, pair: Pair) -> str:
        """Give the reason why a pair cannot use this path, or "".

        Both sides ask, and must get the same answer from the same pair.
        """
        return ""

    def conceal(self, description: Mapping[str, Any], key: HostKey) -> Mapping[str, Any]:
        """Encipher what is of use within a host only, for a hello over TCP."""
        return description

    def reveal(self, description: Mapping[str, Any], key: HostKey) -> Mapping[str, Any]:
        """Undo `conceal`, as far as it can be."""
        return description

    def for_strangers(self, description: Mapping[str, Any]) -> Mapping[str, Any]:
        """Leave out what a process of another host has no use for."""
        return {} if self.within_host else description

    # ---- the doctor; *facts* is a `dask_fabric.cli.doctor.report.Facts`

    def inspect(self, settings: Any) -> Any:
        """Look at what of this host concerns the path; `Facts.details` has it by name."""
        return None

    def rows(self, details: Any) -> Iterator[Sequence[str]]:
        """Give what `inspect` has found, as rows of a table under `title`."""
        yield from ()

    def remedy(self, facts: Any) -> str:
        """Say what to do where the self-test has failed, as far as this path knows."""
        return ""

    def advice(self, facts: Any) -> Iterator[Advice]:
        """Give what costs speed."""
        yield from ()

    def reach(self, facts: Any) -> str:
        """Name what the path reaches other hosts by, faster than the stream does; or ""."""
        return ""

    def complaint(self, output: str) -> str:
        """Find in the output of a self-test that failed what a library has written of it."""
        return ""
