"""Lanes: large frames between hosts go over several connections, where one flow is too slow.

A lane is a further connection of the same kind as the comm's own: to the same listener, with the
same handshake, and inside TLS where the comm is. In its hello to a client the server gives a token;
a lane's hello has it, and so joins the comm.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dask_fabric.keys import Key, Section, size
from dask_fabric.paths.lanes import interfaces
from dask_fabric.paths.provider import Advice, Candidate, Description, Peer, Provider

if TYPE_CHECKING:
    from dask_fabric.paths.joined import JoinedSocket
    from dask_fabric.paths.lanes.endpoint import LanesPath

logger = logging.getLogger(__name__)

_T = TypeVar("_T", "LanesPath", "_Candidate")

LANES_MOST = 8
TOKEN_BYTES = 16
EPOCHS_MOST = 255
_THRESHOLD_BYTES_LEAST = 64 << 10
AUTO = "auto"

# At servers: where else the listener can be reached that is bound to this host and port.
_places: dict[tuple[str, int], Sequence[tuple[str, int]]] = {}
# At servers: the comms that lanes may join, by token.
_joinable: weakref.WeakValueDictionary[bytes, LanesPath] = weakref.WeakValueDictionary()
# The same before the client's PATHS record has been read: its lanes may be accepted before it.
_expected: weakref.WeakValueDictionary[bytes, _Candidate] = weakref.WeakValueDictionary()


def _by_token(table: Mapping[bytes, _T], wish: Mapping[str, Any]) -> _T | None:
    """Give what a lane's hello names by its token, if this event loop has it."""
    token = wish.get("token")
    found = table.get(token) if isinstance(token, bytes) else None
    return found if found is not None and found.loop is asyncio.get_running_loop() else None


def _as_count(value: Any) -> int | str:
    if value != AUTO and not (type(value) is int and 0 <= value <= LANES_MOST):
        raise ValueError(value)
    return value


class LanesProvider(Provider):
    """The path ``lanes``."""

    name = "lanes"
    title = "lanes"
    rank = 90  # after all that is faster than TCP
    takes_only = "frames of 1 MiB and more, once lanes are open"
    between_hosts = True
    extends_stream = True
    section = Section(
        "Large frames between hosts go over several connections, where that is faster.",
        {
            "count": Key(
                "count",
                AUTO,
                "count",
                _as_count,
                f"auto, or a whole number from 0 to {LANES_MOST}",
                {"anyOf": [{"const": AUTO}, {"type": "integer", "minimum": 0, "maximum": 8}]},
                "connections that carry large frames of one comm: auto, or up to 8",
                "How many connections carry the large frames of one comm between hosts. `auto`: "
                "as many, up to 8, as make its transfers faster. `0` or `1`: none beside the "
                "comm's own. The connecting side opens them, and the smaller number of both sides "
                "counts.",
            ),
            "threshold": size(
                "threshold_bytes",
                "1 MiB",
                "frames from this size on are divided among them",
                "Frames from this size on are divided among the connections. At least 64 KiB.",
                least=_THRESHOLD_BYTES_LEAST,
            ),
            "interfaces": Key(
                "interfaces",
                [],
                "list of names",
                interfaces.as_names,
                "a list of names of network interfaces, such as [ib0, ib1]",
                {
                    "anyOf": [
                        {"type": "string"},
                        {
                            "type": "array",
                            "items": {"type": "string"},
                            "maxItems": interfaces.INTERFACES_LIMIT,
                        },
                    ]
                },
                "network interfaces, such as [ib0, ib1], over which lanes go in turn",
                "Network interfaces over which [lanes go in turn](lanes.md#several-interfaces), "
                "beside the one of the comm. Listeners listen on them too. Set it on both sides.",
            ),
        },
        "between hosts, large frames go over several connections",
    )

    def __init__(self) -> None:
        self._described: dict[int, Description] = {}

    def load(self) -> None:
        from dask_fabric.paths.lanes import endpoint, opener  # noqa: F401

    def unwanted(self, settings: Any, insists: bool) -> str:
        count = settings.count
        is_on = count == AUTO or count > 1
        return "" if is_on else f"fabric.lanes.count is {count} in its configuration"

    def describe(self, settings: Any, insists: bool) -> Description | str:
        most = LANES_MOST if settings.count == AUTO else settings.count
        return self._described.setdefault(most, Description(most=most))

    def check(self, description: Mapping[str, Any]) -> bool:
        most, token = description.get("most"), description.get("token", bytes(TOKEN_BYTES))
        is_token = isinstance(token, bytes) and len(token) == TOKEN_BYTES
        is_count = type(most) is int and 2 <= most <= LANES_MOST
        return is_count and is_token and interfaces.is_told(description.get("places", ()))

    def candidate(
        self, description: Mapping[str, Any], settings: Any, sock: socket.socket
    ) -> Candidate:
        return _Candidate(description, settings, sock)

    def more_hosts(self, settings: Any) -> Sequence[str]:
        return interfaces.hosts(settings.interfaces)

    def listens(self, bound: Sequence[tuple[str, int]], places: Sequence[tuple[str, int]]) -> None:
        for one in bound:
            if places:
                _places[one] = places
            else:
                _places.pop(one, None)

    def refuse_joining(self, wish: Mapping[str, Any]) -> str:
        path = _by_token(_joinable, wish)
        if path is None and _by_token(_expected, wish):
            return ""  # checked when the comm has its paths
        number, epoch = wish.get("number"), wish.get("epoch")
        if path is None or path.is_closed:
            return "a lane for a comm that does not exist here, or has ended"
        if type(number) is not int or not 0 <= number < path.lane_limit:
            return f"a lane with the number {number!r:.20}: this comm has {path.lane_limit} at most"
        if type(epoch) is not int or not 0 <= epoch <= EPOCHS_MOST:
            return f"a lane of the epoch {epoch!r:.20}"
        lane = path.lanes[number]
        if lane is not None and lane.epoch == epoch:
            return f"lane {number} is open already"
        return ""

    def joined(self, wish: Mapping[str, Any], connection: JoinedSocket) -> None:
        path = _by_token(_joinable, wish)
        if path is None and (candidate := _by_token(_expected, wish)):
            candidate.keep_lane(wish, connection)
        elif self.refuse_joining(wish) or path is None:
            connection.close()  # the comm has ended meanwhile
        elif connection.is_encrypted != path.is_encrypted:
            logger.warning("A lane is closed: it must be encrypted if its comm is, and only then")
            connection.close()
        else:
            path.new_lane(wish["number"], wish["epoch"], connection)

    def unclaimed_count(self) -> int:
        loop = asyncio.get_running_loop()
        # Other threads change the table: these are copied in one step.
        found = (one() for one in _expected.valuerefs())
        return sum(len(one._early) for one in found if one is not None and one.loop is loop)

    # ---- the doctor

    def inspect(self, settings: Any) -> Mapping[str, Sequence[str]]:
        return {
            name: [str(own.address) for own in interfaces.addresses([name])]
            for name in settings.interfaces
        }

    def rows(self, details: Mapping[str, Sequence[str]]) -> Iterator[Sequence[str]]:
        for name, found in details.items():
            yield name, ", ".join(found) or "no address"

    def advice(self, facts: Any) -> Iterator[Advice]:
        for name, found in (facts.details.get(self.name) or {}).items():
            if not found:
                yield Advice(
                    f"interface {name}",
                    "fabric.lanes.interfaces names it, and it has no address on this host",
                    "name interfaces that `ip address` shows, or leave it out",
                )

    def statistics(self) -> Mapping[str, Any]:
        from dask_fabric.paths.lanes import endpoint

        return endpoint.statistics()


class _Candidate(Candidate):
    """The path during the negotiation of one connection."""

    def __init__(self, description: Mapping[str, Any], settings: Any, sock: socket.socket) -> None:
        super().__init__(description)
        self._settings = settings
        # Now: under TLS, another object soon has the socket.
        self._own = sock.getsockname()[:2] if _places or settings.interfaces else ("", 0)
        self._peer_host = sock.getpeername()[0] if settings.interfaces else ""
        self._token = b""  # of a server
        self.loop: asyncio.AbstractEventLoop | None = None
        self._early: list[tuple[Mapping[str, Any], JoinedSocket]] = []

    def __del__(self) -> None:
        for _, connection in self._early:  # the comm has ended before it had this path
            connection.close()

    def keep_lane(self, wish: Mapping[str, Any], connection: JoinedSocket) -> None:
        """Take a lane for a comm that does not have its paths yet."""
        if len(self._early) < LANES_MOST:
            self._early.append((wish, connection))
        else:
            connection.close()

    def answer(self) -> Mapping[str, Any] | None:
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self.loop = asyncio.get_running_loop()
        _expected[self._token] = self
        host, port = self._own
        bound_to = (_places.get((one, port)) for one in (host, "0.0.0.0", "::"))
        places = next(filter(None, bound_to), ())
        told = {"places": [[*place] for place in places]} if places else {}
        return {**self.description, "token": self._token, **told}

    def probe(self, peer: Peer) -> str:
        is_joinable = self._token or "token" in peer.description
        return "" if is_joinable else "the server's hello has no token for lanes"

    def open(self, peer: Peer, memory: Sequence[str]) -> LanesPath:
        from dask_fabric.paths.lanes.endpoint import LanesPath

        most = min(self.description["most"], peer.description["most"])
        token = self._token or peer.description["token"]
        is_auto = self._settings.count == AUTO
        loop, least_bytes = asyncio.get_running_loop(), self._settings.threshold_bytes
        path = LanesPath(loop, token, most, least_bytes, is_auto)
        names, told = self._settings.interfaces, peer.description.get("places", ())
        if names and told and not self._token:
            path.ways = interfaces.ways(told, names, self._own[0], self._peer_host)
        if self._token:
            _joinable[token] = path
            del _expected[token]
            early, self._early = self._early, []
            for wish, connection in early:
                loop.call_soon(PROVIDER.joined, wish, connection)  # when the comm uses the path
        return path


PROVIDER = LanesProvider()
