"""`Provider`: the process-wide side of a path, for negotiation, configuration and reports.

Theory of operation
-------------------
A path has two halves. Its *provider*, here, speaks for the process: it decides whether the path can
be used, describes it in the hello, objects to a pair of processes that cannot use it, declares its
configuration, and reports to the doctor. Its `dask_fabric.wire.path.Path` moves the frames of one
comm.

When a connection is made, both sides describe their paths in their hellos. Each asks the provider
of every path for an objection, by the two descriptions alone, so both get the same answer. Then
each side probes the rest (`Candidate.probe`), and the client announces its failures to the server.
The paths that are left are opened, the lowest rank first.

A provider of another package is found by an entry point, see `dask_fabric.providers`. Its module
is imported with the configuration. So at its top it should import only this module,
`dask_fabric.keys` and light modules; the rest belongs into the methods that need it.
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
    from dask_fabric.paths.joined import JoinedSocket
    from dask_fabric.wire.path import Path

HOST, CUDA = "host", "cuda"


class Description(dict):
    """The description of one path in a hello, with names as keys.

    Compared by identity: a provider returns the same object until its description changes, so that
    the cached hello made from it can be used again.
    """

    __slots__ = ()
    __eq__ = object.__eq__
    __ne__ = object.__ne__
    __hash__ = object.__hash__  # type: ignore[assignment]  # no dict has a hash; this one may


class Pair(NamedTuple):
    """Two processes that may use a path.

    Attributes
    ----------
    client, server : mapping
        The description of the path in each hello; both have passed `Provider.check`.
    memory : {"host", "cuda"}
        The kind of memory that the frames are in.
    same_host : bool
        Whether the two are on one running system.
    insists : bool
        Whether the scheme of either side insists on this path.
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
        The description of the path in its hello.
    pid : int
        Its process id. Over a Unix socket it comes from the kernel, and 0 means that it is not
        visible here; over TCP it comes from the hello, and may be false.
    kernel_pid : int
        Its process id if it comes from the kernel, else 0.
    """

    description: Mapping[str, Any]
    pid: int
    kernel_pid: int


class HostKey:
    """A key for one connection, which only processes of the same host can derive.

    Parameters
    ----------
    boot : str
        The boot id of the running system; no hello contains it over TCP.
    proof : str
        The public proof of knowing it, different for each connection.
    side : {"client", "server"}
        The side whose hello the key is for.
    """

    def __init__(self, boot: str, proof: str, side: str) -> None:
        self._boot, self._proof = boot, proof
        self.key = self._digest(side)

    def exchange(self, offset: int, value: bytes) -> bytes:
        """Encrypt or decrypt (the same operation) with the key's bytes from *offset* on.

        The key has 32 bytes; the first four are for the process id.
        """
        return bytes(a ^ b for a, b in zip(value, self.key[offset:], strict=False))

    def disguise(self, *texts: str) -> str:
        """Give a hash of *texts*: both sides can compare it, others learn nothing from it."""
        return self._digest(*texts)[:16].hex()

    def _digest(self, *texts: str) -> bytes:
        content = "\0".join((self._proof, *texts)).encode()
        return hmac.digest(self._boot.encode(), content, hashlib.sha256)


@dataclass(frozen=True)
class Advice:
    """A problem that costs speed or breaks something, with a remedy."""

    about: str
    reason: str
    remedy: str


class Candidate:
    """A path during the negotiation of one connection.

    Parameters
    ----------
    description : mapping

    Attributes
    ----------
    description : mapping
        The description of the path in this connection's hello.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        self.description = description

    def answer(self) -> Mapping[str, Any] | None:
        """As a server, give another description for the hello to this client, or None.

        Called once the client's hello has arrived, before `probe`, and never at a client.
        """
        return None

    def probe(self, peer: Peer) -> str:
        """Test whether the path works with *peer*; give the reason why not, or "".

        Runs in the event loop: it must not block.
        """
        return ""

    def open(self, peer: Peer, memory: Sequence[str]) -> Path:
        """Give the end of the path for this connection.

        Parameters
        ----------
        peer : Peer
        memory : sequence of str
            The kinds of memory whose frames it carries.
        """
        raise NotImplementedError


class Provider:
    """The process-wide side of one path; made once, at no cost.

    Attributes
    ----------
    name : str
        A lower-case word, used in hellos, in the configuration (``fabric.NAME.*``) and in
        statistics.
    title : str
        The name for users.
    scheme : str
        The address scheme that insists on this path; empty if there is none.
    memory : tuple of str
        The kinds of memory whose frames it can carry: ``host``, ``cuda``.
    rank : int
        Of two paths, the one with the lower rank is preferred.
    takes_only : str
        Which of the large frames it accepts. Empty: all, so that no path of a higher rank is needed
        beside it.
    copies : bool
        Whether frames are copied, so that their bytes per second mean anything.
    within_host : bool
        Whether it only works between processes of one host.
    extends_stream : bool
        Whether it moves frames by connections of the same kind as the stream. So it may be used
        where frames must stay on the stream: under TLS, and by the schemes of the stream alone.
    between_hosts : bool
        Whether it is of no use where both ends of the connection have the same address.
    needs_direct_connection : bool
        Whether the end of the connection must be seen at once, so that no proxy may be between the
        two processes.
    section : dask_fabric.keys.Section
        Its part of the configuration.
    environment : mapping of str to str
        Variables to set in a program whose standard output is parsed.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    scheme: ClassVar[str] = ""
    memory: ClassVar[tuple[str, ...]] = (HOST,)
    rank: ClassVar[int] = 50
    takes_only: ClassVar[str] = ""
    copies: ClassVar[bool] = True
    within_host: ClassVar[bool] = False
    between_hosts: ClassVar[bool] = False
    extends_stream: ClassVar[bool] = False
    needs_direct_connection: ClassVar[bool] = False
    section: ClassVar[Section] = Section("", {})
    environment: ClassVar[Mapping[str, str]] = {}

    # ---- the process

    def load(self) -> None:
        """Import the modules that the methods below need, so that no connection waits for them.

        Called when the process imports `dask_fabric.comm`.
        """

    def configure(self, settings: Any) -> None:
        """Apply *settings* (those of this path) to the process; called again when they change."""

    def unwanted(self, settings: Any, insists: bool) -> str:
        """Give the reason why no connection of this process shall use this path, or "".

        Asked once for given *settings*: `prepare` and `describe` are not called where the path is
        unwanted, unless the scheme insists on it.

        Parameters
        ----------
        settings : named tuple
            The settings of this path.
        insists : bool
            Whether the scheme insists on this path.
        """
        return ""

    async def prepare(self, settings: Any, insists: bool, host: str = "") -> str:
        """Find and start what `describe` needs, without blocking the event loop.

        Called before each connection and each listener, so it must cost nothing the next time.

        Parameters
        ----------
        settings : named tuple
            The settings of this path.
        insists : bool
            Whether the scheme insists on this path.
        host : str
            The host that a listener is bound to.

        Returns
        -------
        str
            The reason why the path cannot be used, with the remedy; or "".
        """
        return ""

    def describe(self, settings: Any, insists: bool) -> Description | str:
        """Give the description for the hello, or the reason why this process does not use the path.

        A hello is small: see "Hello" in ``docs/wire-protocol.md`` for the limits.
        """
        raise NotImplementedError

    def candidate(
        self, description: Mapping[str, Any], settings: Any, sock: socket.socket
    ) -> Candidate:
        """Begin to negotiate for the connection *sock*; *description* comes from `describe`."""
        raise NotImplementedError

    def refuse_joining(self, wish: Mapping[str, Any]) -> str:
        """As a server, give the reason to refuse a connection that a client adds to a comm, or "".

        Parameters
        ----------
        wish : mapping
            From the client's hello, and untrusted: its ``path`` is the name of this one. If the
            process has a key, the client has proved that it has the key too.
        """
        return f"no connection can join a comm for the path {self.name}"

    def joined(self, wish: Mapping[str, Any], connection: JoinedSocket) -> None:
        """As a server, take a connection that `refuse_joining` did not refuse."""
        connection.close()

    def unclaimed_count(self) -> int:
        """As a server, count the connections that joined comms which have no paths yet.

        Of the running event loop. They count as connections in the handshake.
        """
        return 0

    def serve(self, settings: Any, memory_limit_bytes: int, runs_tasks: bool) -> None:
        """A server of Dask's begins to listen.

        Called in the context (`contextvars`) from which that of its tasks is copied.

        Parameters
        ----------
        settings : named tuple
            The settings of this path.
        memory_limit_bytes : int
            The memory limit of a worker, or 0.
        runs_tasks : bool
            Whether the server is a worker.
        """

    def more_hosts(self, settings: Any) -> Sequence[str]:
        """Give addresses of this host on which a listener is to listen too, beside its own."""
        return ()

    def listens(self, bound: Sequence[tuple[str, int]], places: Sequence[tuple[str, int]]) -> None:
        """A listener listens for `more_hosts` at these *places* (address and port).

        Called again, with none, when it stops.

        Parameters
        ----------
        bound
            All addresses and ports that it is bound to, by which other listeners differ.
        places
        """

    def new_frame(self, nbytes: int) -> Any:
        """Give an array of bytes that lies where the path can send it from; for the self-test."""
        import numpy as np  # not when the configuration is imported

        return np.empty(nbytes, np.uint8)

    def device_environment(
        self, ports: Sequence[str], settings: Any, environment: Mapping[str, str]
    ) -> Mapping[str, str]:
        """Give variables that have a GPU worker use the network devices near its GPU.

        Parameters
        ----------
        ports : sequence of str
            The active ports of these RDMA devices, such as ``mlx5_0:1``; not empty.
        settings : named tuple
            The settings of this path.
        environment : mapping of str to str
            The worker's; what the user has chosen there stays.
        """
        return {}

    def statistics(self) -> Mapping[str, Any] | None:
        """Give this path's process-wide counters, or None if there are none."""
        return None

    # ---- descriptions in hellos: pure functions

    def check(self, description: Mapping[str, Any]) -> bool:
        """Whether a peer's description is valid; it is untrusted."""
        return True

    def objection(self, pair: Pair) -> str:
        """Give the reason why a pair cannot use this path, or "".

        Called on both sides: the same pair must get the same answer.
        """
        return ""

    def conceal(self, description: Mapping[str, Any], key: HostKey) -> Mapping[str, Any]:
        """Encrypt, for a hello over TCP, the values that are useful within a host only."""
        return description

    def reveal(self, description: Mapping[str, Any], key: HostKey) -> Mapping[str, Any]:
        """Undo `conceal`, as far as possible."""
        return description

    def for_strangers(self, description: Mapping[str, Any]) -> Mapping[str, Any]:
        """Leave out the values that are useless for a process on another host."""
        return {} if self.within_host else description

    # ---- the doctor; *facts* is a `dask_fabric.cli.doctor.report.Facts`

    def inspect(self, settings: Any) -> Any:
        """Collect facts of this host that concern the path, for `Facts.details`."""
        return None

    def rows(self, details: Any) -> Iterator[Sequence[str]]:
        """Give the facts from `inspect` as rows of a table under `title`."""
        yield from ()

    def remedy(self, facts: Any) -> str:
        """Give a remedy for a failed self-test, or ""."""
        return ""

    def advice(self, facts: Any) -> Iterator[Advice]:
        """Give advice on problems that cost speed."""
        yield from ()

    def reach(self, facts: Any) -> str:
        """Name the network by which the path reaches other hosts faster than the stream, or ""."""
        return ""

    def complaint(self, output: str) -> str:
        """Find a library's error message in the output of a failed self-test, or give ""."""
        return ""
