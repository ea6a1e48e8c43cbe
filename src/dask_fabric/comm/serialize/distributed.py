"""The dialect of the installed ``distributed``, for the codec."""

from __future__ import annotations

import logging
from functools import lru_cache, partial

import numpy as np
from dask._task_spec import GraphNode
from distributed.metrics import context_meter
from distributed.protocol import pickle
from distributed.protocol.compression import compressions, maybe_compress
from distributed.protocol.serialize import (
    Pickled,
    Serialize,
    Serialized,
    ToPickle,
    _is_msgpack_serializable,
    dask_deserialize,
    dask_dumps,
    dask_loads,
    dask_serialize,
    families,
    merge_and_deserialize,
    msgpack_decode_default,
    msgpack_encode_default,
    serialize_and_split,
)
from distributed.protocol.utils import msgpack_opts
from distributed.sizeof import safe_sizeof
from distributed.utils import ensure_memoryview

from dask_fabric.codec.codec import Codec
from dask_fabric.codec.dialect import Dialect
from dask_fabric.comm.network.refusals import Gate
from dask_fabric.comm.serialize import cupy_arrays, dlpack, torch_tensors
from dask_fabric.comm.serialize.decompression import decompress, growth_bytes
from dask_fabric.comm.serialize.too_large import raise_if_refused

_ARRAY_MODULE = "distributed.protocol.numpy"


def _listeners():
    # Private attribute, looked up once: a context manager per payload would cost microseconds.
    callbacks = getattr(context_meter, "_callbacks", None)
    return callbacks.get if callbacks is not None else lambda: True


def _is_own(dispatch) -> bool:
    """Whether distributed's own function serializes numpy arrays: users may register another."""
    return dispatch.dispatch(np.ndarray).__module__ == _ARRAY_MODULE


def _sends_arrays(dask_family, serializers) -> bool:
    # The family "cuda" does not serialize numpy arrays.
    first = next((name for name in serializers or () if name != "cuda"), None)
    return (
        (serializers is None or first == "dask")
        and families.get("dask") is dask_family
        and _is_own(dask_serialize)
    )


def _receives_arrays(dask_family, deserializers) -> bool:
    return (
        (deserializers is None or "dask" in deserializers)
        and families.get("dask") is dask_family
        and _is_own(dask_deserialize)
    )


@lru_cache(maxsize=64)
def _slots_of(kind: type) -> tuple[str, ...]:
    return tuple({slot for base in kind.__mro__ for slot in getattr(base, "__slots__", ())})


def _parts_of_node(node: GraphNode) -> list:
    kind: type = type(node)
    return [getattr(node, slot, None) for slot in _slots_of(kind)]


def _merge_and_deserialize(header, frames, deserializers=None):
    raise_if_refused(header, frames)
    return merge_and_deserialize(header, frames, deserializers=deserializers)


def _own_dask_family():
    """The family as distributed registers it; () if a user replaced it."""
    family = families.get("dask")
    is_own = family and family[:2] == (dask_dumps, dask_loads)
    return family if is_own else ()


def make_dialect() -> Dialect:
    """Collect what the codec needs from ``distributed``.

    Returns
    -------
    Dialect
    """
    dask_family = _own_dask_family()
    protocol_logger = logging.getLogger("distributed.protocol.core")
    return Dialect(
        Serialize=Serialize,
        Serialized=Serialized,
        ToPickle=ToPickle,
        Pickled=Pickled,
        serialize_and_split=serialize_and_split,
        merge_and_deserialize=_merge_and_deserialize,
        maybe_compress=maybe_compress,
        decompress=decompress,
        growth_bytes=growth_bytes,
        compressions=compressions,
        pickle_dumps=pickle.dumps,
        pickle_loads=pickle.loads,
        ensure_memoryview=ensure_memoryview,
        msgpack_encode_default=msgpack_encode_default,
        msgpack_decode_default=msgpack_decode_default,
        msgpack_opts=msgpack_opts,
        is_msgpack_serializable=_is_msgpack_serializable,
        sends_arrays=partial(_sends_arrays, dask_family),
        receives_arrays=partial(_receives_arrays, dask_family),
        array_header={
            "type": "numpy.ndarray",
            "type-serialized": pickle.dumps(np.ndarray),
            "serializer": "dask",
        },
        GraphNode=GraphNode,
        parts_of_node=_parts_of_node,
        sizeof=partial(safe_sizeof, default_size=-1),
        metered=_listeners(),
        digest_metric=context_meter.digest_metric,
        protocol_logger=protocol_logger,
        message_logger=logging.getLogger("distributed.comm.utils"),
        may_log_failure=Gate(protocol_logger, "messages could not be deserialized").admits,
    )


cupy_arrays.register()
dlpack.register()
torch_tensors.register()
codec = Codec(make_dialect())
