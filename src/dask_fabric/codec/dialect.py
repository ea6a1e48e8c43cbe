"""What the codec asks of ``distributed``, which alone decides what is serialized and how.

The codec never imports ``distributed``; ``dask_fabric.comm.serialize.distributed`` fills this in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from logging import Logger
from typing import Any, NamedTuple


class Dialect(NamedTuple):
    """The classes and functions of ``distributed.protocol``, under the names that it gives them.

    Those that are not simply taken from there:

    Attributes
    ----------
    sends_arrays : callable
        ``(serializers or None) -> bool``: would distributed's own function serialize a numpy array?
    receives_arrays : callable
        ``(deserializers or None) -> bool``: and deserialize it?
    decompress : callable
        ``(names, frames, total_bytes, limit_bytes) -> list``: see
        `dask_fabric.comm.serialize.decompression`.
    growth_bytes : callable
        ``(names, frames) -> int``: bytes that decompressing adds, as far as the frames say it.
    array_header : dict
        What ``serialize`` puts in the header of each numpy array besides its ``sub-header``.
    parts_of_node : callable
        ``(GraphNode) -> list``: what a task of a graph holds, so that one need not ask ``sizeof``.
    sizeof : callable
        ``(object) -> int``: bytes of an object; -1 where that cannot be found out.
    metered : callable
        ``() -> bool``: does anybody listen to the metrics of this context?
    digest_metric : callable
        ``(label, value, unit)``: tells those who listen.
    protocol_logger, message_logger : logging.Logger
        Where distributed logs failures of (de)serialization, and the messages that failed.
    """

    Serialize: type
    Serialized: type
    ToPickle: type
    Pickled: type
    serialize_and_split: Callable[..., Any]
    merge_and_deserialize: Callable[..., Any]
    maybe_compress: Callable[..., Any]
    decompress: Callable[..., list]
    growth_bytes: Callable[..., int]
    compressions: Mapping[Any, Any]
    pickle_dumps: Callable[..., bytes]
    pickle_loads: Callable[..., Any]
    ensure_memoryview: Callable[[Any], memoryview]
    msgpack_encode_default: Callable[[Any], Any]
    msgpack_decode_default: Callable[[dict], Any]
    msgpack_opts: Mapping[str, Any]
    is_msgpack_serializable: Callable[[Any], bool]
    sends_arrays: Callable[[Any], bool]
    receives_arrays: Callable[[Any], bool]
    array_header: Mapping[str, Any]
    GraphNode: type
    parts_of_node: Callable[[Any], list]
    sizeof: Callable[[Any], int]
    metered: Callable[[], Any]
    digest_metric: Callable[[str, float, str], None]
    protocol_logger: Logger
    message_logger: Logger
