"""The bytes that a connection has still to send, in order.

Theory of operation
-------------------
The buffer is a queue of vectors (address and length), in the form that sendmsg(2) takes. An owner
for each vector keeps its memory alive until the socket has taken the bytes.

Small data is copied to the end of a *chunk*. As long as the last vector ends where the free room of
the chunk begins (`tail_is_open`), it just grows: so many small messages become one vector. A frame
above the inline limit gets a vector on its own memory. That closes the tail.

A message is queued as prefix, table, descriptors, header and frames. Each frame is offered by the
first path that takes it, or else follows on the stream. Frames on offer are not queued: they go to
`offered`, and the caller keeps a lease on them.

A record is queued whole or not at all, since an incomplete one would end the connection. `_mark`
notes the state before it, and `_roll_back` returns to that state after an error, such as a lack of
memory.

A native thread may send the vectors while further records are queued. It has a copy of those that
were there when it began. `seal` closes the tail before, so that none of them grows meanwhile.

An empty buffer gives its chunk to the next comm that sends (`spare_chunk`): an idle comm has none.
"""

from typing import Final

new_owners = list

class DeviceFrame:
    """A frame of device memory, and its address."""

class SendBuffer:
    """Bytes and frames that wait for the socket."""

    pending_bytes: Final[int]

    def __init__(self, inline_bytes: int = 0): ...
    def __sizeof__(self):
        """Includes its own buffers, but not the frames."""
