from typing import Any, Final

from dask_fabric.codec.dialect import Dialect

class Packing:
    """A msgpack packer, reused, with the hook that leaves payloads aside."""
    def __init__(self, codec: Codec): ...
    def __call__(self, item): ...

class Codec:
    """Messages to ``(header, frames)`` and back, for any number of comms and threads.

    Parameters
    ----------
    dialect : dask_fabric.codec.dialect.Dialect
        What ``distributed`` decides.
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
            Families in the order in which they are tried; None for distributed's default.
        on_error : {"message", "raise"}
            What to do with a payload that cannot be serialized.
        context : dict, optional
            ``sender``, ``recipient`` and the options of the handshake, as under ``tcp``.

        Returns
        -------
        Encoding
            Offload its ``finish`` if its ``offload_bytes`` are many.
        """
    def encode(self, message, serializers=None, on_error="message", context=None):
        """Begin and finish in one; see ``begin`` and ``Encoding.finish``."""
    def offload_bytes(self, header, frames: list[Any], deserialize: bool = True):
        """Estimate how much work ``decode`` is: bytes that are not merely taken by reference.

        What was pickled is unpickled also where nothing else is deserialized. Zero where header and
        frames do not fit each other, which ``decode`` will say at once.
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
            Each with a lifetime of its own; arrays come to lie over them. Or device memory.
        deserialize : bool
            Whether what was serialized is deserialized, or passed on as ``Serialized``.
        deserializers : collection of str, optional
            The families that are allowed.
        limit_bytes : int, optional
            What the message may have, with its frames decompressed.

        Raises
        ------
        dask_fabric.errors.LimitError
            It would have more; that was not allocated.
        dask_fabric.errors.ProtocolError
            Header and frames contradict themselves or each other, and nothing was unpickled; or
            the msgpack in the header cannot be decoded.
        """

class Encoding:
    """A message under way, made by ``Codec.begin``."""

    serializers: Any
    payloads: Final[list[Any]]
    saved_bytes: Final[Any]

    @property
    def offload_bytes(self):
        """Estimate how much work ``finish`` is: bytes that are not merely passed by reference."""
    def finish(self):
        """Serialize the payloads; may be called in another thread, once.

        Returns
        -------
        header : bytes
        frames : list of bytes, bytearray or memoryview
            Contiguous and of one dimension, the objects' own memory wherever possible; what lies
            on a device, or belongs there, is the object that the serializer made.
        """
    def pack_header(self, header): ...
