"""The functions of ``distributed`` that the codec needs.

``distributed`` alone decides what is serialized and how, but the codec never imports it:
``dask_fabric.comm.serialize.distributed`` fills in a `Dialect`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from logging import Logger
from typing import Any, NamedTuple


class Dialect(NamedTuple):
    """The classes and functions of ``distributed.protocol``, under their names there.

    The following are different or our own:

    Attributes
    ----------
    sends_arrays : callable
        ``(serializers or None) -> bool``: whether distributed's own function would serialize a
        numpy array.
    receives_arrays : callable
        ``(deserializers or None) -> bool``: whether it would deserialize one.
    decompress : callable
        ``(names, frames, total_bytes, limit_bytes) -> list``: see
        `dask_fabric.comm.serialize.decompression`.
    growth_bytes : callable
        ``(names, frames) -> int``: bytes that decompression adds, as far as frames state sizes.
    array_header : dict
        The header of each serialized numpy array, without its ``sub-header``.
    parts_of_node : callable
        ``(GraphNode) -> list``: the parts of a task in a graph; cheaper than its ``sizeof``.
    sizeof : callable
        ``(object) -> int``: bytes of an object; -1 if unknown.
    metered : callable
        ``() -> bool``: whether this context has callbacks for metrics.
    digest_metric : callable
        ``(label, value, unit)``: calls them.
    protocol_logger, message_logger : logging.Logger
        Where distributed logs failures of (de)serialization, and the messages that failed.
    may_log_failure : callable
        ``() -> bool``: whether to log one more failure of deserialization. A peer can cause many.
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
    may_log_failure: Callable[[], bool]
