"""Messages to header and frames, and back.

Theory of operation
-------------------
Encoding has two steps. `Codec.begin` packs the message with msgpack. Wherever the packer meets an
object that needs a serializer (`Serialize`, `ToPickle` and the like), its hook, `Packing`, puts the
object aside as a *payload* and packs a reference in its place. `Encoding.finish` then serializes
the payloads, each into an entry of the header's table and any number of frames. Only this second
step can take long: `Encoding.offload_bytes` estimates it by the payloads alone, and the comm may
run it in a thread. A message without payloads is complete after the first step.

A plain NumPy array has a short entry of its own, and one frame, its memory (`codec.arrays`). All
else is serialized by functions of `distributed`, which come in the `Dialect`, so that this module
imports nothing of it. Large bytes and texts in the packed message become payloads too, and so
frames (`codec.large`).

Decoding is the reverse. `Codec.offload_bytes` estimates it first, without unpickling anything. Then
`decode` parses and checks the table (`codec.decoding`), before it unpickles any payload, and
unpacks the message with each reference replaced by its object. The header comes from an untrusted
peer: msgpack of very many tiny objects is scanned first, decoded in pieces, and never in an event
loop (`is_long`).

`docs/codec.md` has the format.
"""

from typing import Any, Final

from dask_fabric.codec.dialect import Dialect

class Packing:
    """A msgpack packer, reused, with the hook that leaves payloads aside."""
    def __init__(self, codec: Codec): ...
    def __call__(self, item): ...

class Codec:
    """Converts messages to ``(header, frames)`` and back, for any number of comms and threads.

    Parameters
    ----------
    dialect : dask_fabric.codec.dialect.Dialect
        The functions and settings of ``distributed``.
    """

    dialect: Final[Any]

    def __init__(self, dialect: Dialect): ...
    def begin(
        self,
        message: Any,
        serializers: Any | None = None,
        on_error: Any = "message",
        context: Any | None = None,
    ) -> Encoding:
        """Pack a message and leave its payloads aside.

        Parameters
        ----------
        message : object
        serializers : sequence of str, optional
            Families to try, in this order; None for distributed's default.
        on_error : {"message", "raise"}
            How to handle a payload that cannot be serialized.
        context : dict, optional
            ``sender``, ``recipient`` and the options of the handshake, as under ``tcp``.

        Returns
        -------
        Encoding
            Call its ``finish`` in a thread if its ``offload_bytes`` are many.
        """
    def encode(self, message, serializers=None, on_error="message", context=None):
        """Begin and finish in one; see ``begin`` and ``Encoding.finish``."""
    def offload_bytes(self, header, frames: list[Any], deserialize: bool = True):
        """Estimate the work of ``decode``: bytes that are not merely passed by reference.

        Pickles count even without `deserialize`, because they are always unpickled. Zero if header
        and frames do not fit each other: then ``decode`` fails at once. Negative if no event loop
        should do it, whatever the threshold: see ``is_long``.
        """
    def is_long(self, header, frames: list[Any]):
        """Whether a header holds so many objects that no event loop should decode it.

        ``decode`` lets other threads run meanwhile.
        """
    def decode(
        self,
        header: bytes | memoryview,
        frames: list[Any],
        deserialize: bool = True,
        deserializers=None,
        limit_bytes: int | None = None,
    ):
        """Rebuild a message.

        Parameters
        ----------
        header : bytes or memoryview
        frames : list of bytes-like
            Each with a lifetime of its own, because arrays are built over them; or device memory.
        deserialize : bool
            Whether to deserialize serialized objects, or to return them as ``Serialized``.
        deserializers : collection of str, optional
            The families that are allowed.
        limit_bytes : int, optional
            The limit of the message's size, with its frames decompressed.

        Raises
        ------
        dask_fabric.errors.LimitError
            The message would exceed the limit; nothing above it was allocated.
        dask_fabric.errors.ProtocolError
            Header and frames are inconsistent, and nothing was unpickled; or the msgpack in the
            header cannot be decoded.
        """

class Encoding:
    """A message being encoded, made by ``Codec.begin``."""

    serializers: Any
    payloads: Final[list[Any]]
    saved_bytes: Final[Any]

    @property
    def offload_bytes(self):
        """Estimate the work of ``finish``: bytes that are not merely passed by reference."""
    def finish(self):
        """Serialize the payloads; may be called in another thread, once.

        Returns
        -------
        header : bytes
        frames : list of bytes, bytearray or memoryview
            Contiguous and one-dimensional, the objects' own memory wherever possible. A device
            frame is the object that the serializer made.
        """
    def pack_header(self, header): ...
