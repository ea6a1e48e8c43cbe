"""One side: a connection and its driver, which does the same as `dask_fabric.engine.channel`.

If a method has another name than the channel's, its docstring has that name. The world takes the
part of the event loop: `soon` is `call_soon`, and `on_readable` delivers bytes.
"""

from __future__ import annotations

import contextlib
import errno
import weakref

import numpy as np

from dask_fabric.errors import ChannelClosedError, FabricError, ProtocolError
from dask_fabric.wire.connection import Connection

from .path import TOKEN, Memory, spoil
from .wire import Violation, Wire

# As in connection.pxd and states.pxd.
WANT_FETCH, WANT_ANSWER, WANT_LOOK, WANT_ATTENTION, WANT_END = 1, 2, 4, 8, 16
LEFT_WANTS = WANT_FETCH | WANT_ATTENTION | WANT_END  # must be handled at once
NOTICE_PATHS = 0
CLOSING = 2
CLOSED_HERE, FAILED = 1, 2

LIMIT_BYTES = 256 << 20
INLINE_BYTES = 2000
READ_BYTES = 16 << 10
PATIENCE_SECONDS = 5.0  # of a transfer, and of a close
FAULTS = (FabricError, OSError)  # errors that may end a connection; any other is a bug


class Lent(weakref.ref):
    """A reference to a frame; when it dies, the frame's memory (`owned`) is overwritten."""

    __slots__ = ("owned",)


def overwrite(lent: Lent) -> None:
    spoil(lent.owned)


class Fetching:
    """A transfer in progress."""

    def __init__(self, transfer) -> None:
        self.transfer = transfer
        self.frames = list(transfer.frames.frames)  # keeps the memory, like the quarantine
        self.views = [(TOKEN.unpack_from(v[2])[0], v[3]) for v in transfer.frames.views()]
        self.error = 0


class Node:
    """One side of the simulation.

    Attributes
    ----------
    waiting : bool
        Whether a `receive` is pending.
    has_ended : bool
        Whether a `receive` has ended with an error; the application does not read again.
    closed_in_order : bool
        Whether a close ended in order, with everything sent.
    """

    def __init__(self, world, name: str, out: Wire, incoming: Wire) -> None:
        self.world, self.name, self.out, self.incoming = world, name, out, incoming
        incoming.reader = self
        self.core = Connection(LIMIT_BYTES, LIMIT_BYTES, 10_000, INLINE_BYTES)
        self.outbox = self.core.outbox
        self.records = self.core.reader.records
        self.memory = Memory(self)
        self.lent: list[Lent] = []
        self.peer: Node = self
        self.closed = self.is_dead = self.watching = self.blocked = False
        self.error: BaseException | None = None
        self.fetching: Fetching | None = None
        self.draining = self.flush_due = self.go_on_due = False
        self.closed_by_app = self.closed_in_order = False
        self.waiting = self.has_ended = False
        self.eager = True
        self.sending = 0  # the number of the message that is being sent
        self.sent: list[tuple] = []
        self.delivered: list[tuple] = []
        self.local = self.remote = 0

    def open(self, paths) -> None:
        self.core.opened()
        for path in paths:
            self.core.use(path)
        self.watch(True)

    # ------------------------------------------------------------ the application

    def send(self, header: bytes, frames: list[tuple[int, int]]) -> None:
        """Send frames; each is a part of the text, given as (offset, bytes)."""
        if self.closed or self.draining:
            return
        buffers = []
        for offset, nbytes in frames:
            buffers.append(self.lend(offset, nbytes))
        self.sending = len(self.sent)
        self.sent.append((header, frames))
        self.core.send(header, buffers)
        buffers.clear()
        if self.world.chance(0.5):
            self.flush()
        else:
            self.flush_soon()

    def lend(self, offset: int, nbytes: int):
        text = self.world.text
        if nbytes <= INLINE_BYTES:
            return text[offset : offset + nbytes]
        owned = bytearray(self.world.text_view[offset : offset + nbytes])
        self.memory.kept.append(owned)
        array = np.frombuffer(owned, np.uint8)
        lent = Lent(array, overwrite)
        lent.owned = owned
        self.lent.append(lent)
        return array

    def read_on(self) -> None:
        """Read until no message is left, or the application is not eager."""
        while not (self.waiting or self.has_ended or self.is_dead):
            try:
                message = self.receive()
            except FAULTS as error:
                self.ended(error)
                return
            if message is None:
                return
            self.got(message)
            if not self.eager and not self.world.is_calm:
                return

    def got(self, message) -> None:
        self.world.check_delivery(self, message)

    def ended(self, error: BaseException) -> None:
        """Handle the error of a `receive`."""
        self.waiting = False
        self.has_ended = True
        self.world.note(self, "reading has ended", error)

    # ------------------------------------------------------------ receiving

    def receive(self):
        message = self.take()
        if message is None and self.core.remote >= CLOSING and not self.closed:
            self.on_readable(len(self.incoming.queue))
            message = self.take()
        if message is None:
            self.check_open()
            self.waiting = True
            self.go_on_later()
            self.read_bulk()
        return message

    def take(self):
        if self.closed and self.error is None:
            raise self.why_closed()
        try:
            return self.take_anyway()
        except FAULTS as error:
            self.fail(error)
            raise

    def take_anyway(self):
        core = self.core
        message = core.next_message()
        while core.wants & (WANT_FETCH | WANT_ATTENTION):
            self.serve()
            if message is None:
                message = core.next_message()
        if core.wants & WANT_LOOK:
            core.wants &= ~WANT_LOOK
            self.world.soon(self.look_ahead)
        if core.wants & WANT_END:
            self.fail(None)
        self.settle_turn()
        return message

    def look_ahead(self) -> None:
        if not self.closed and not self.waiting:
            self.guarded(self.process_unawaited)

    def serve(self) -> None:
        if self.core.wants & WANT_ATTENTION:
            for kind, _, _ in self.core.take_notices():
                if kind == NOTICE_PATHS:
                    self.world.complete_negotiation(self)
        elif self.core.wants & WANT_FETCH:
            self.fetch()

    def settle_turn(self) -> None:
        if self.closed:
            return
        if self.core.wants & WANT_ANSWER:
            self.core.wants &= ~WANT_ANSWER
            self.flush_soon()
        if self.draining:
            self.after_write()

    def process(self) -> None:
        if not self.waiting or self.fetching is not None:
            self.process_unawaited()
            return
        message = self.take()
        if message is None:
            self.go_on_later()
            self.read_bulk()
        elif self.waiting:
            self.waiting = False
            self.got(message)
            if self.eager or self.world.is_calm:
                self.read_on()
            elif self.world.chance(0.5):
                self.world.soon(self.read_on)

    def process_unawaited(self) -> None:
        core = self.core
        core.read_unawaited()
        while core.wants & (WANT_FETCH | WANT_ATTENTION):
            self.serve()
            core.read_unawaited()
        if core.wants & WANT_END:
            self.fail(None)
            return
        self.settle_turn()
        if core.discards():
            self.go_on_later()
        if core.incoming.staging_is_full():
            self.watch(False)
        elif core.discards():
            self.read_bulk()

    def go_on_later(self) -> None:
        if self.core.reader.has_more_work() and not self.go_on_due and not self.closed:
            self.go_on_due = True
            self.world.soon(self.go_on)

    def go_on(self) -> None:
        self.go_on_due = False
        if not self.closed and (self.waiting or self.core.discards()):
            self.guarded(self.process)

    def guarded(self, call) -> None:
        try:
            call()
        except FAULTS as error:
            self.fail(error)

    # ------------------------------------------------------------ bytes

    def watch(self, is_wanted: bool) -> None:
        self.watching = is_wanted
        if is_wanted:
            self.world.wake(self.incoming)

    def read_bulk(self) -> None:
        if self.fetching is None and not self.closed:
            self.watch(True)

    def on_readable(self, nbytes: int) -> None:
        """Read at most *nbytes* bytes (`Channel._read`)."""
        if self.core.incoming.staging_is_full() and self.core.reader.has_more_work():
            self.watch(False)
            return
        self.guarded(lambda: self._read(nbytes))

    def _read(self, nbytes: int) -> None:
        core, wire = self.core, self.incoming
        while not self.closed:
            piece = wire.peek(min(nbytes, core.incoming.missing_bytes or READ_BYTES))
            if not piece:
                break
            used = core.feed(piece)
            wire.drop(used)
            nbytes -= used
            if core.incoming.missing_bytes == 0:
                self.process()
                if core.incoming.missing_bytes == 0 and core.remote < CLOSING:
                    return
        if not self.closed and wire.is_ended and not wire.queue:
            if wire.is_reset and self.world.chance(0.5):
                raise ConnectionResetError(errno.ECONNRESET, "the wire was reset")
            self.fail(core.lose_stream())

    def read_rest(self) -> None:
        core, wire = self.core, self.incoming
        while wire.queue and not self.closed:
            wire.drop(core.feed(wire.peek(READ_BYTES)))
            if core.incoming.missing_bytes == 0:
                self.process()

    def flush_soon(self) -> None:
        if not self.flush_due:
            self.flush_due = True
            self.world.soon(self.uncork)

    def uncork(self) -> None:
        self.flush_due = False
        if not self.closed:
            self.flush()

    def flush(self) -> None:
        if self.blocked or not self.core.outgoing.pending_bytes:
            return
        try:
            self.write()
            self.after_write()
        except OSError as error:
            self.broken(error)

    def write(self, reply: bytes = b"") -> None:
        if self.out.is_broken:
            raise BrokenPipeError(errno.EPIPE, "the reader has gone")
        room = self.out.room()
        data = self.core.take_outgoing(room)
        if not self.core.outgoing.pending_bytes:
            data += reply[: room - len(data)]
        if data:
            self.out.put(data)
            self.world.wake(self.out)

    def after_write(self) -> None:
        if self.core.outgoing.pending_bytes:
            if not self.blocked:
                self.blocked = True
                self.world.wake_writer(self)
        elif self.draining and not self.core.is_busy():
            self.drained()

    def on_writable(self) -> None:
        self.blocked = False
        if not self.closed:
            self.flush()

    def broken(self, error: BaseException) -> None:
        try:
            self.read_rest()
        except ProtocolError as violated:
            error = violated
        except FAULTS:
            pass
        self.fail(error)

    # ------------------------------------------------------------ fetching

    def fetch(self) -> None:
        if self.closed:
            self.core.drop_unready()
            raise self.why_closed()
        transfer = self.core.next_transfer()
        if transfer is None:
            return
        self.fetching = Fetching(transfer)
        self.world.begin_fetch(self, self.fetching)

    def copied(self, fetching: Fetching) -> None:
        """Copy the frames out of the peer's memory; the end is reported later."""
        for token, memory in fetching.views:
            fetching.error = fetching.error or self.peer.memory.fetch(token, memory)

    def transfer_ended(self, fetching: Fetching, error: int) -> None:
        self.fetching = None
        if error == 0 and self.sender_has_gone():
            raise ChannelClosedError("the peer's end was lost while its frames were fetched")
        self.core.end_transfer(fetching.transfer, error)

    def sender_has_gone(self) -> bool:
        return self.incoming.seems_ended()

    def fetch_ended(self, fetching: Fetching) -> None:
        """Handle the end of the job (`Channel._job_ended`)."""
        if fetching is self.fetching:
            self.guarded(lambda: self._job_ended(fetching))

    def _job_ended(self, fetching: Fetching) -> None:
        self.transfer_ended(fetching, fetching.error)
        self.go_on_after_transfer()

    def abandon(self, fetching: Fetching) -> None:
        """Abandon a transfer that takes too long (`Channel._tend_again`)."""
        if fetching is self.fetching:
            self.guarded(lambda: self._abandon(fetching))

    def _abandon(self, fetching: Fetching) -> None:
        self.fetching = None
        self.world.will_write_late(self, fetching)
        self.end_stuck(fetching)
        self.go_on_after_transfer()

    def end_stuck(self, fetching: Fetching) -> None:
        self.core.end_transfer(fetching.transfer, errno.ETIMEDOUT, is_stuck=True)

    def go_on_after_transfer(self) -> None:
        if self.core.wants & WANT_FETCH:
            self.fetch()
        if self.fetching is None and not self.closed:
            self.watch(True)
            self.process()
            self.settle_turn()

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        if self.closed or self.draining:
            return
        self.closed_by_app = True
        self.draining = True
        self.world.note(self, "closes")
        self.core.close()
        self.flush()
        if self.core.outbox.unanswered_count and not self.closed:
            self.guarded(self.process)
        if not self.closed and self.core.is_busy():
            self.world.after(PATIENCE_SECONDS, self.close_timed_out, self.left_bytes())
        elif not self.closed:
            self.drained()

    def left_bytes(self) -> int:
        return self.core.outbox.in_flight_bytes + self.core.outgoing.pending_bytes

    def close_timed_out(self, before_bytes: int) -> None:
        if self.closed:
            return
        if self.left_bytes() == before_bytes:
            self.abort()
        else:
            self.world.after(PATIENCE_SECONDS, self.close_timed_out, self.left_bytes())

    def drained(self) -> None:
        self.world.soon(self.finish_close)

    def finish_close(self) -> None:
        if not self.closed:
            self.closed_in_order = not self.core.is_busy()
            self.out.end(at_once=False)
            self.abort()

    def abort(self) -> None:
        self.closed_by_app = True
        self.fail(None)

    def fail(self, error: BaseException | None) -> None:
        if self.closed:
            return
        self.world.note(self, "ends", error)
        reply = getattr(error, "reply", b"") if self.core.local < CLOSING else b""
        if not self.blocked and not self.out.is_ended:
            with contextlib.suppress(OSError):
                self.write(reply)
        self.closed = True
        self.error = error
        self.release()
        self.core.end(CLOSED_HERE if error is None else FAILED, isinstance(error, ProtocolError))
        if self.waiting:
            self.ended(self.why_closed())

    def release(self) -> None:
        if self.fetching is not None:
            self.world.will_write_late(self, self.fetching)
            self.fetching = None
        if self.core.outbox.unanswered_count:
            self.out.end(at_once=True)  # seen by the peer before the memory is freed
        self.watching = False
        self.close_socket()

    def close_socket(self) -> None:
        if self.incoming.queue and self.world.chance(0.5):
            self.out.end(at_once=True)  # like TCP, if bytes are unread
        self.out.end(at_once=False)
        self.incoming.is_broken = True
        self.incoming.queue.clear()
        self.world.wake(self.out)
        self.world.wake_writer(self.peer)

    def die(self) -> None:
        """Die like a killed process: first its memory is freed, then its stream ends."""
        self.memory.is_dead = True
        self.is_dead = self.closed = self.has_ended = True
        self.fetching = None
        self.waiting = self.watching = False
        self.out.is_lossy = True
        self.close_socket()

    def check_open(self) -> None:
        if self.closed:
            raise self.why_closed()

    def why_closed(self) -> BaseException:
        return ChannelClosedError(str(self.error or "the comm was closed on this side"))

    def dismantle(self) -> None:
        """Drop all references, after the simulation."""
        self.core = self.outbox = self.records = self.error = self.fetching = None
        self.delivered.clear()
        self.memory.forget()
        self.world = self.peer = self.incoming = None

    # ------------------------------------------------------------ invariants

    def check(self) -> None:
        core = self.core
        if self.outbox.in_flight_bytes != self.memory.offered_bytes:
            raise Violation(
                f"{self.name} counts {self.outbox.in_flight_bytes} bytes in flight, "
                f"and has {self.memory.offered_bytes} on offer"
            )
        local, remote = core.local, self.records.remote
        if local < self.local or remote < self.remote:
            raise Violation(f"a state of {self.name} goes back: {local}, {remote}")
        self.local, self.remote = local, remote
        if self.closed:
            return
        if core.wants & LEFT_WANTS:
            raise Violation(f"{self.name} was left wanting {core.wants:#x}")
        if self.draining and remote >= CLOSING and self.outbox.unanswered_count:
            raise Violation(f"{self.name} waits for answers of a peer that has closed")

    def check_end(self) -> None:
        """Check that nothing is left after the end."""
        core = self.core
        left = {
            "leases": len(core.outbox),
            "bytes in flight": core.outbox.in_flight_bytes,
            "bytes to send": core.outgoing.pending_bytes,
            "frames on offer": len(self.memory.offered),
            "transfers": core.next_transfer() is not None,
            "a reader": self.waiting,
        }
        left = {name: value for name, value in left.items() if value}
        if left:
            raise Violation(f"{self.name} has ended, and has left {left}")
