"""Planted bugs: the simulation must find each of them.

Each replaces one part of the world (`Parts`): the driver of a connection, a path or a wire. None is
in `Connection` or its parts.
"""

from __future__ import annotations

import errno

import numpy as np

from .node import FAILED, WANT_ANSWER, WANT_FETCH, Node
from .path import FakePath, spoil
from .wire import Wire
from .world import Parts


def address_of(memory) -> int:
    return np.frombuffer(memory, np.uint8).__array_interface__["data"][0]


class EarlyRelease(FakePath):
    """Reuses a frame's memory at the peer's REQUEST, while FRAMES is still to be sent."""

    def release_frame(self, descriptor: bytes) -> None:
        super().release_frame(descriptor)
        memory = self.node.memory
        address = address_of(list(memory.released.values())[-1])
        for owned in memory.kept:
            if address_of(owned) == address:
                spoil(owned)


class TwiceReleased(FakePath):
    """Releases each frame a second time."""

    def release_frame(self, descriptor: bytes) -> None:
        super().release_frame(descriptor)
        super().release_frame(descriptor)


class OutOfOrder(Node):
    """Delivers a message before an earlier one, if the earlier one was still being fetched."""

    held = None
    was_fetched = False

    def transfer_ended(self, fetching, error) -> None:
        super().transfer_ended(fetching, error)
        self.was_fetched = error == 0

    def got(self, message) -> None:
        if self.was_fetched:
            self.was_fetched = False
            self.held, message = message, self.held
        if message is not None:
            super().got(message)
        if not self.was_fetched and self.held is not None and self.held is not message:
            self.world.soon(self.give_held)

    def give_held(self) -> None:
        message, self.held = self.held, None
        if message is not None:
            super().got(message)


class TooHasty(Node):
    """Reports the end of a transfer before the frames are copied."""

    def copied(self, fetching) -> None:
        self.world.after(0.5, super().copied, fetching)


class Deaf(Node):
    """Ignores the answers of the peer while no reader waits (`read_unawaited`)."""

    def process_unawaited(self) -> None:
        pass


class Careless(Node):
    """Ends a stuck transfer without `is_stuck`: its thread may still write to the memory."""

    def end_stuck(self, fetching) -> None:
        self.core.end_transfer(fetching.transfer, errno.ETIMEDOUT)


class Trusting(Node):
    """Does not check that the sender still lived after its frames were copied."""

    def sender_has_gone(self) -> bool:
        return False


class FreesFirst(Node):
    """Frees its memory before the peer can see the end of the stream."""

    def release(self) -> None:
        self.core.end(FAILED)
        super().release()


class Forgetful(Node):
    """Does not send the answers that are queued (`WANT_ANSWER`)."""

    def settle_turn(self) -> None:
        self.core.wants &= ~WANT_ANSWER
        super().settle_turn()


class Idle(Node):
    """Does not process, after a transfer, the messages that arrived meanwhile."""

    def go_on_after_transfer(self) -> None:
        if self.core.wants & WANT_FETCH:
            self.fetch()


class Repeating(Wire):
    """Sometimes delivers the last byte of a read twice."""

    def drop(self, nbytes: int) -> None:
        is_cut = 1 < nbytes < len(self.queue) and self.world.chance(0.02)
        super().drop(nbytes - is_cut)


class Dropping(Wire):
    """Sometimes loses the first byte after a read."""

    def drop(self, nbytes: int) -> None:
        is_cut = 1 < nbytes < len(self.queue) and self.world.chance(0.02)
        super().drop(nbytes + is_cut)


BUGS = {
    "memory is released early": Parts(path=EarlyRelease),
    "a frame is released twice": Parts(path=TwiceReleased),
    "messages are delivered out of order": Parts(node=OutOfOrder),
    "a message is delivered unready": Parts(node=TooHasty),
    "answers are ignored while no reader waits": Parts(node=Deaf),
    "abandoned memory is used again": Parts(node=Careless),
    "a dead sender is trusted": Parts(node=Trusting),
    "memory is freed before the stream is ended": Parts(node=FreesFirst),
    "queued answers are not sent": Parts(node=Forgetful),
    "nothing follows a transfer": Parts(node=Idle),
    "bytes are delivered twice": Parts(wire=Repeating),
    "bytes are dropped": Parts(wire=Dropping),
}
