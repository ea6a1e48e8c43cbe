"""The endpoint of the `lanes` path: frames in parts over several connections.

Theory of operation
-------------------
One flow of TCP may be slower than the network: clouds and shapers cap each flow, and a hash places
each on one link of several. So beside the stream there are *lanes*, further connections between the
same two processes. Each frame is cut in parts, one for each lane.

The sender pushes. A frame's descriptor has the *share* of each lane, so that both sides compute the
same parts. A lane is a queue in each direction: the parts of all frames, in the order of messages,
and of frames within them. The receiver receives each part into its place in the frame. A header
before each part names message and frame. It is compared with what is expected, so that a lane that
is out of step is noticed.

Shares follow the speed at which the lanes sent last: a slow one gets less.

A lane that fails is closed, and its shares are 0 from then on. The other lanes finish the message,
which keeps them in step. Then the receiver requests its frames over the stream. A receive that is
given up leaves lanes in the middle of a part, so they are all closed. Without lanes this path takes
nothing, and frames go on the stream.

Who opens lanes, and how many, is decided elsewhere (`paths/lanes/opener.py`): the client dials. The
server may send on a lane before the client knows that it is open. So a part may wait for its lane.
A lane's *epoch* tells connections apart that had the same number one after another.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from _typeshed import Incomplete

from dask_fabric.jobs.completions import Job
from dask_fabric.paths.joined import JoinedSocket
from dask_fabric.wire.path import Path

logger = logging.getLogger(__name__)
NAME = "lanes"
NUMBER = 5
LANE_COUNT_LIMIT: Incomplete = ...
TEND_SECONDS = 0.5
STALLED_SECONDS = 2.0
LAST_SECONDS = 5.0
STILL_SECONDS = 60.0

class Part:
    """What one lane moves of one message: for each frame a header, and a part of it."""

class LanesJob(Job):
    """Moves the frames of one message, or of one window of it, by all lanes."""
    def started(self):
        """All parts were given to their lanes: the job may end now."""

class Lane:
    """One connection beside the stream: a queue of parts in each direction."""

    number: Final[int]
    epoch: Final[int]
    connection: Final[JoinedSocket]
    rate: Final[float]
    moved_anything: Final[bool]
    is_retired: Final[bool]

    def attached(self, connection: JoinedSocket):
        """The connection is open: move what has waited for it."""
    def fail(self, code: int) -> Any:
        """Close the lane. Its parts end with an errno."""

class LanesPath(Path):
    """Moves frames in parts, by as many lanes as are open.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        Of the comm.
    token : bytes
        Names this comm to the peer, where new lanes arrive.
    lane_limit : int
        The most lanes that both sides accept.
    least_bytes : int
        The smallest frame that is offered.
    is_auto : bool
        Whether this side finds out how many lanes pay; used at the client only.

    Attributes
    ----------
    lanes : list of Lane or None
        By number.
    is_closed : bool
        Whether the comm has ended.
    on_lost : callable or None
        Called with each lane that is lost while the comm goes on.
    on_closed : callable or None
        Called at the end of the comm.
    ways : list of dask_fabric.paths.lanes.interfaces.Way
        To other interfaces of the server; at the client only.
    policy : Policy or None
        Of the peer's host, from the first measurement on; at the client only.
    """

    loop: Final[Any]
    token: Final[bytes]
    lane_limit: Final[int]
    lanes: Final[list[Any]]
    is_auto: Final[bool]
    is_closed: Final[bool]
    on_lost: Any
    on_closed: Any
    ways: list[Any]
    policy: Any

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        token: bytes,
        lane_limit: int,
        least_bytes: int,
        is_auto: bool = False,
    ): ...
    @property
    def lane_count(self):
        """How many lanes are open."""
    @property
    def connection_count(self): ...
    @property
    def flows(self): ...
    def use_dialer(self, dial): ...
    @property
    def channel(self):
        """The channel of the comm; None once it is gone."""
    def receive_seconds(self):
        """The time that receives of large messages took so far, on the stream and by lanes."""
    def retire_from(self, count: int):
        """Have the peer close the lanes from this number on, once nothing moves on them.

        This side sends nothing more on them. What the peer has begun to send is still received.
        """
    @property
    def is_encrypted(self):
        """Whether the stream is inside TLS, so that lanes must be."""
    def new_lane(self, number: int, epoch: int, connection: JoinedSocket | None = None) -> Lane:
        """Add a lane, which replaces the one that had its number.

        Parameters
        ----------
        number : int
        epoch : int
            From 0 to 255; of two connections of one number, they are different.
        connection : dask_fabric.paths.joined.JoinedSocket, optional
            None while it is dialled: call `Lane.attached` or `Lane.fail` in the end.

        Returns
        -------
        Lane
        """
    def lane_ended(self, lane: Lane, code: int):
        """Called by a lane that has failed, or is closed."""

def statistics() -> dict[str, Any]:
    """Count the lanes of this process.

    Returns
    -------
    dict
        ``open_count``, and since the start ``opened_count`` and ``lost_count`` (not those that
        ended with their comm).
    """

def bounds(shares: Sequence[int], nbytes: int) -> list[tuple[int, int]]:
    """Give begin and size of each lane's part of a frame of *nbytes*, by the shares of all eight.

    Parameters
    ----------
    shares : sequence of int
    nbytes : int

    Returns
    -------
    list of (int, int)
    """
