"""A seeded simulation of two connections, without sockets, threads and time.

Theory of operation
-------------------
The protocol is in `dask_fabric.wire.connection.Connection`, which does no I/O. So two connections
can be run against each other in any order of events, at the speed of the processor. Every run can
be repeated, because time is a number, and one random generator decides everything random.

* `World` has the time, a queue of (time, event), and the generator. A *step* is the next event of
  the queue, or an action of an application or of the world: send, begin to read, block a wire.
* `Wire` is one direction of the stream. It delivers any number of bytes at a time, accepts only as
  many as it has room for, and ends in order (after the bytes) or by a reset.
* `FakePath` offers frames by a token into the `Memory` of its node. A fetch ends now, later, with
  an errno, or never. One that does not end is abandoned, and may write into its memory much later.
  Released memory is overwritten at once.
* `Node` is a connection with the part of its owner, and a reader that does not always read.

A *schedule* is one run. First come some steps with at most one fault: an abort, a death, a reset, a
close, or a violation by the peer. Then all faults end: the wires accept everything and the readers
read. All messages must arrive, and all leases must end. At last the nodes close, and nothing may be
left. The invariants are checked after each step; a broken one raises `Violation`.

If a schedule fails, its seed repeats it exactly, and its last steps are printed:
``python -m tests.simulation --seed N --count 1``.
"""

from __future__ import annotations

import errno
import heapq
import random
from dataclasses import dataclass

from dask_fabric.errors import ProtocolError
from dask_fabric.wire.records import paths_record

from .node import PATIENCE_SECONDS, Fetching, Node
from .path import FakePath, spoil
from .wire import ACKNOWLEDGE, CLOSE, FRAMES, PREFIX, Violation, Wire

TEXT = random.Random(0).randbytes(4 << 20)  # every frame is a part of it
TEXT_VIEW = memoryview(TEXT)
OFFSETS = 1 << 17
SMALL_SIZES = (0, 1, 100, 1999, 2000, 2001, 3000, 5000)
LARGE_SIZES = (65535, 65536, 65536, 66000, 68000, 70000)
HEADER_SIZES = (0, 1, 40, 40, 300, 2000, 5000)
CALM_SECONDS = 100.0
CALM_EVENTS = 20_000
TRACE_LENGTH = 60

# Faults and ends of a schedule, as often as they are chosen.
ENDINGS = ["none"] * 8 + ["close"] * 4 + ["abort"] * 2 + ["die"] * 2 + ["reset"] * 2 + ["violate"]


@dataclass(frozen=True)
class Parts:
    """The parts of a world; planted bugs replace one of them."""

    node: type = Node
    path: type = FakePath
    wire: type = Wire


class World:
    """Two nodes, the wires between them, and the time.

    Parameters
    ----------
    seed : int
    parts : Parts
    """

    def __init__(self, seed: int, parts: Parts) -> None:
        self.seed = seed
        self.text, self.text_view = TEXT, TEXT_VIEW
        self.choose = choose = random.Random(seed)
        self.random = choose.random
        self.now = 0.0
        self.number = 0
        self.events: list[tuple] = []
        self.trace: list[tuple] = []
        self.is_calm = False
        self.wrote_late = False
        capacity = choose.choice((5000, 100_000, 1 << 20, 1 << 20, 1 << 20))
        wires = [parts.wire(capacity), parts.wire(capacity)]
        for wire in wires:
            wire.world = self
        wires[0].transcript.other = wires[1].transcript
        wires[1].transcript.other = wires[0].transcript
        first = parts.node(self, "A", wires[0], wires[1])
        second = parts.node(self, "B", wires[1], wires[0])
        first.peer, second.peer = second, first
        self.nodes = (first, second)
        self.passive = self.nodes[choose.random() < 0.5] if choose.random() < 0.2 else None
        self.wires = wires
        self.complaint = ""
        self.violated_by: Node | None = None
        self.violated_at = 0
        self.fetch_fails = choose.choice((0.0, 0.1, 0.5))
        self.sends_much = choose.random() < 0.3
        sizes = choose.choice(((65536,), (65536,), (67_000, 65536)))
        self.paths = [
            [parts.path(node, 16 + i, least) for i, least in enumerate(sizes)]
            for node in self.nodes
        ]
        # The client's first record, PATHS, completes the negotiation; then both use the paths.
        first.out.put(paths_record(b"\x80"))
        first.open(self.paths[0])
        second.open([])

    # ------------------------------------------------------------ chance and time

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def at(self, time: float, call, *arguments) -> None:
        self.number += 1
        heapq.heappush(self.events, (time, self.number, call, arguments))

    def after(self, seconds: float, call, *arguments) -> None:
        self.at(self.now + seconds, call, *arguments)

    def soon(self, call) -> None:
        self.at(self.now, call)

    def note(self, node: Node, what: str, *details) -> None:
        self.trace.append((self.now, node.name, what, details))

    def next_event(self) -> None:
        time, _, call, arguments = heapq.heappop(self.events)
        self.now = max(self.now, time)
        owner = getattr(call, "__self__", self)
        if owner is not self:
            self.note(owner, call.__name__)
        call(*arguments)

    # ------------------------------------------------------------ wires

    def wake(self, wire: Wire) -> None:
        """Schedule a delivery to the reader of a wire, if there is news for it."""
        if not wire.is_due and wire.reader.watching and wire.has_news():
            wire.is_due = True
            draw = self.random()  # a reader may be busy
            self.after(draw * 0.01 if draw < 0.95 else draw * 0.2, self.deliver, wire)

    def deliver(self, wire: Wire) -> None:
        wire.is_due = False
        node = wire.reader
        if node.closed or not node.watching:
            return
        nbytes = len(wire.queue)
        draw = self.random()
        if draw < 0.3:
            nbytes = min(nbytes, int(draw * 130) + 1)
        elif draw < 0.5:
            nbytes = min(nbytes, int((draw - 0.3) * 100_000) + 1)
        self.note(node, "gets", nbytes, "of", len(wire.queue))
        node.on_readable(nbytes)
        self.wake(wire)
        if node.peer.blocked:
            self.wake_writer(node.peer)

    def wake_writer(self, node: Node) -> None:
        if node.blocked and (node.out.room() > 0 or node.out.is_broken):
            self.soon(node.on_writable)

    def complete_negotiation(self, node: Node) -> None:
        """Use the paths: the client's PATHS record has arrived."""
        paths = self.paths[self.nodes.index(node)]
        if node.core.paths:
            raise Violation(f"{node.name} received a second PATHS record")
        for path in paths:
            node.core.use(path)

    # ------------------------------------------------------------ fetching

    def begin_fetch(self, node: Node, fetching: Fetching) -> None:
        """Decide how a transfer ends, and when."""
        draw = self.random()
        self.note(node, "fetches", fetching.transfer.frames.sequence)
        if draw < self.fetch_fails:
            if draw < self.fetch_fails * 0.4:
                self.after(PATIENCE_SECONDS, node.abandon, fetching)
                return
            fetching.error = errno.EFAULT
        draw = self.random()
        if draw < 0.3:
            node.copied(fetching)
            node.transfer_ended(fetching, fetching.error)
            return
        copied = self.now + draw * draw * 0.1
        if not fetching.error:
            self.at(copied, node.copied, fetching)
        self.at(copied + self.random() * 0.02, node.fetch_ended, fetching)

    def will_write_late(self, node: Node, fetching: Fetching) -> None:
        """Abandon a transfer; its thread may still write to the memory later."""
        if self.chance(0.7):
            self.note(node, "gives up", fetching.transfer.frames.sequence)
            self.after(self.random() * 2, self.write_late, fetching)

    def write_late(self, fetching: Fetching) -> None:
        self.wrote_late = True
        for _, memory in fetching.views:
            spoil(memory)
        fetching.frames.clear()
        fetching.views.clear()

    # ------------------------------------------------------------ actions

    def act(self) -> None:
        node = self.nodes[self.random() < 0.5]
        draw = self.random()
        if node.is_dead or (node.closed and node.has_ended):
            return
        if draw < 0.5:
            self.send(node)
        elif draw < 0.85:
            if not node.waiting and not node.has_ended and node is not self.passive:
                self.note(node, "reads")
                node.read_on()
        elif draw < 0.92:
            node.eager = not node.eager
        else:
            self.block(node, not node.out.is_blocked)

    def block(self, node: Node, is_blocked: bool) -> None:
        node.out.is_blocked = is_blocked
        if not is_blocked:
            self.wake_writer(node)

    def send(self, node: Node) -> None:
        if node.closed or node.draining:
            return
        draw, choose = self.random(), self.choose
        count = (0, 1, 1, 2, 3, 5)[int(draw * 6)]
        large = 0.7 if self.sends_much else 0.25
        frames = []
        for _ in range(count):
            kind = self.random()
            sizes = LARGE_SIZES if kind < large else SMALL_SIZES
            nbytes = sizes[int(self.random() * len(sizes))]
            if kind > 0.999:
                nbytes = 3 << 20
            frames.append((int(self.random() * OFFSETS), nbytes))
        if draw > 0.9995:
            frames += [(0, 0)] * 5000
        header = HEADER_SIZES[int(self.random() * len(HEADER_SIZES))]
        at = choose.randrange(OFFSETS)
        self.note(node, "sends", len(node.sent), header, [f[1] for f in frames[:10]])
        node.send(TEXT[at : at + header], frames)

    def end(self, ending: str) -> None:
        """Cause the fault of a schedule."""
        node = self.nodes[self.random() < 0.5]
        if node.is_dead or ending == "none":
            return
        self.note(node, "fault:", ending)
        if ending == "close":
            node.close()
        elif ending == "abort":
            node.abort()
        elif ending == "die":
            node.die()
        elif ending == "reset":
            for wire in self.wires:
                wire.end(at_once=True)
                wire.is_broken = True
                self.wake(wire)
                self.wake_writer(wire.reader)
        elif ending == "violate" and node.out.transcript.is_between_records():
            self.violate(node)

    def violate(self, node: Node) -> None:
        """Put an invalid record into a node's stream."""
        wire = node.out
        if wire.is_ended or wire.transcript.has_closed:
            return
        self.violated_by = node
        self.violated_at = wire.transcript.message_count
        kind, number = self.choose.choice(
            ((9, 0), (0, 0), (FRAMES, 1 << 40), (ACKNOWLEDGE, 1 << 40), (1, 1 << 40), (CLOSE, 0))
        )
        flags = int(kind == CLOSE)
        wire.queue += PREFIX.pack(kind, flags, 0, 0, 0, number)
        self.wake(wire)

    # ------------------------------------------------------------ invariants

    def check_delivery(self, node: Node, message) -> None:
        """Check that a delivered message is the next one of the peer, and complete."""
        number = len(node.delivered)
        self.note(node, "receives", number)
        if number >= len(node.peer.sent):
            raise Violation(f"{node.name} received a message that was not sent")
        if node.peer is self.violated_by and number >= self.violated_at:
            raise Violation(f"{node.name} received a message from behind a violation")
        self.compare(node, number, message)
        node.delivered.append(message)

    def compare(self, node: Node, number: int, message) -> None:
        header, frames = message
        sent_header, sent_frames = node.peer.sent[number]
        if header != sent_header or len(frames) != len(sent_frames):
            raise Violation(f"message {number} of {node.peer.name} differs from the sent one")
        for index, (frame, (offset, nbytes)) in enumerate(zip(frames, sent_frames, strict=True)):
            if frame is None:
                raise Violation(f"frame {index} of message {number} is missing")
            if frame.nbytes != nbytes or not TEXT.startswith(frame, offset):
                raise Violation(f"frame {index} of message {number} has the wrong content")

    def check_error(self, node: Node) -> None:
        """Check that a node ends with a `ProtocolError` only after a violation."""
        error = node.error
        if error is None or not isinstance(error, ProtocolError):
            return
        if self.violated_by is None:
            raise Violation(f"{node.name} ends with {error!r}, but nobody broke the protocol")

    def complain(self, what: str) -> None:
        """Record a violation; the connection or its path would catch an exception."""
        self.complaint = self.complaint or what

    def check(self) -> None:
        if self.complaint:
            raise Violation(self.complaint)
        for node in self.nodes:
            if not node.is_dead:
                node.check()

    def run_until_quiet(self, what: str) -> None:
        """Run all events; they must come to an end."""
        until = self.now + CALM_SECONDS
        for _ in range(CALM_EVENTS):
            if not self.events:
                return
            self.next_event()
            self.check()
            if self.now > until:
                break
        raise Violation(f"events do not end after {what}")

    # ------------------------------------------------------------ a schedule

    def run(self, steps: int) -> None:
        ending = ENDINGS[int(self.random() * len(ENDINGS))]
        ends_at = int(self.random() * steps)
        awaits = self.random() < 0.5  # the fault comes while a transfer runs
        second_at = int(self.random() * steps * 8)  # mostly never
        first, second = self.nodes
        for step in range(steps):
            if self.events and self.random() < 0.65:
                self.next_event()
            else:
                self.act()
            if step >= ends_at and ending != "none" and (not awaits or self.is_fetching()):
                self.end(ending)
                ending = "none"
            elif step == second_at:
                self.end("close")
            self.check()
            if first.closed and second.closed:
                break
        self.calm_down()
        self.close_all()

    def is_fetching(self) -> bool:
        return any(node.fetching is not None for node in self.nodes)

    def calm_down(self) -> None:
        """End all faults, and check that all messages arrive where the application reads."""
        self.is_calm = True
        for node in self.nodes:
            if not node.is_dead:
                self.block(node, False)
                if node is not self.passive:
                    self.soon(node.read_on)
        self.run_until_quiet("the last fault")
        is_whole = not any(each.closed or each.draining for each in self.nodes)
        if is_whole and self.violated_by is None:
            for node in self.nodes:
                if node.peer is not self.passive:
                    self.check_arrived(node)

    def check_arrived(self, node: Node) -> None:
        """Check that the peer has received everything, and released it.

        Both nodes are open, no events are left, and the peer reads. The peer's answers and requests
        come in order with its messages, so they wait as long as this node does not read.
        """
        peer = node.peer
        if node is self.passive and len(node.delivered) < len(peer.sent):
            return
        if len(peer.delivered) < len(node.sent):
            raise Violation(
                f"{peer.name} reads, but got {len(peer.delivered)} of {len(node.sent)} messages"
            )
        if node.core.outgoing.pending_bytes:
            raise Violation(f"{node.name} has unsent bytes for a peer that reads")
        if len(node.core.outbox):
            raise Violation(f"{node.name} still has leases on frames that its peer fetched")

    def close_all(self) -> None:
        """Close one node or both, and check the end; a node that does not close reads."""
        draw = self.random()
        for node in self.nodes:
            if not node.is_dead and not node.has_ended:
                self.soon(node.read_on)
        closing = self.nodes if draw < 0.4 else (self.nodes[draw < 0.7],)
        for node in closing:
            if not node.is_dead:
                self.after(self.random() * 0.05, node.close)
        self.run_until_quiet("the close")
        for node in self.nodes:
            if not node.is_dead:
                self.check_node_end(node)
        self.check()

    def check_node_end(self, node: Node) -> None:
        if not node.closed and not node.peer.is_dead:
            raise Violation(f"{node.name} has not ended, although one of the two has closed")
        if not node.closed:
            raise Violation(f"{node.name} has not noticed that its peer has died")
        if not node.has_ended:
            self.read_rest(node)
        self.check_error(node)
        node.check_end()
        peer = node.peer
        has_faults = node.closed_by_app or peer.out.is_lossy or self.violated_by is not None
        if peer.closed_in_order and not has_faults and len(node.delivered) != len(peer.sent):
            raise Violation(
                f"{peer.name} has closed in order, and {node.name} has got "
                f"{len(node.delivered)} of {len(peer.sent)} messages"
            )
        if self.wrote_late:
            for number, message in enumerate(node.delivered):
                self.compare(node, number, message)

    def read_rest(self, node: Node) -> None:
        """Read the messages that arrived before the end."""
        node.read_on()
        if not node.has_ended:
            raise Violation(f"a read of {node.name} does not end")

    def end_all(self) -> None:
        """Free everything but the trace."""
        for node in self.nodes:
            node.lent.clear()  # first: memory that is freed now must not be overwritten
        for node in self.nodes:
            node.dismantle()
        for wire in self.wires:
            wire.reader = wire.world = None
            wire.transcript.other = wire.transcript
            wire.queue.clear()
        self.events.clear()
        self.paths.clear()
        self.nodes = ()

    def trace_text(self, count: int | None = None) -> str:
        """Give the last steps, one in each line."""
        lines = []
        for time, name, what, details in self.trace[-count:] if count else self.trace:
            lines.append(f"{time:9.4f} {name} {what} {' '.join(map(str, details))}".rstrip())
        return "\n".join(lines)


class Failure(Exception):
    """A schedule failed; the text has its seed and its last steps."""

    def __init__(self, seed: int, cause: BaseException, trace: str) -> None:
        super().__init__(f"seed {seed}: {type(cause).__name__}: {cause}\n{trace}")
        self.seed = seed
        self.cause = cause


def run(seed: int, steps: int = 60, parts: Parts | None = None) -> World:
    """Run one schedule.

    Parameters
    ----------
    seed : int
        Runs of the same seed are equal in every step.
    steps : int
        The number of steps before all faults end.
    parts : Parts, optional
        Replacements, such as those with planted bugs.

    Raises
    ------
    Failure
    """
    world = World(seed, parts or Parts())
    try:
        world.run(steps)
    except Exception as cause:
        raise Failure(seed, cause, world.trace_text(TRACE_LENGTH)) from cause
    finally:
        world.end_all()
    return world
