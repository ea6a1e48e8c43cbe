import numpy as np
import pytest
from distributed.metrics import context_meter
from distributed.protocol import Serialize, ToPickle, dask_serialize, dumps, loads, serialize
from distributed.protocol.numpy import serialize_numpy_ndarray
from distributed.protocol.serialize import families

from dask_fabric.codec.codec import Codec
from dask_fabric.comm.serialize.distributed import make_dialect


@pytest.fixture(scope="module")
def codec():
    return Codec(make_dialect())


def metrics_of(work):
    seen = []
    with context_meter.add_callback(lambda *metric: seen.append(metric)):
        result = work()
    assert all(value >= 0 and unit == "seconds" for _, value, unit in seen)
    return result, {label for label, _, _ in seen}


@pytest.mark.parametrize(
    "message",
    [
        {"op": "ping"},
        {"data": {"k": Serialize(np.arange(3))}},
        Serialize([np.arange(3)]),
        Serialize("text"),
        ToPickle(np.arange(3)),
    ],
    ids=["ping", "array", "collection", "text", "pickle"],
)
def test_metrics_are_those_of_tcp(codec, message):
    frames, sent = metrics_of(lambda: dumps(message))
    _, received = metrics_of(lambda: loads(frames))
    (header, frames), our_sent = metrics_of(lambda: codec.encode(message))
    _, our_received = metrics_of(lambda: codec.decode(header, frames))
    assert our_sent == sent
    assert our_received == received - ({"decompress"} if type(message) is ToPickle else set())


def test_the_header_of_arrays_is_that_of_distributed():
    header, _ = serialize(np.arange(3))
    assert make_dialect().array_header == {k: v for k, v in header.items() if k != "sub-header"}


@pytest.mark.parametrize(
    ("serializers", "expected"),
    [
        (None, True),
        (["dask", "pickle"], True),
        (("dask",), True),
        (["pickle", "dask"], False),
        (["cuda", "dask", "pickle"], True),
        (["cuda", "pickle", "dask"], False),
        (["cuda"], False),
        ([], False),
    ],
)
def test_arrays_are_ours_only_where_dask_comes_first(serializers, expected):
    assert make_dialect().sends_arrays(serializers) is expected


@pytest.mark.parametrize(
    ("deserializers", "expected"), [(None, True), (["pickle", "dask"], True), (["pickle"], False)]
)
def test_arrays_are_received_only_where_dask_is_allowed(deserializers, expected):
    assert make_dialect().receives_arrays(deserializers) is expected


def test_arrays_belong_to_whoever_registers_for_them():
    early = make_dialect()
    dask_serialize.register(np.ndarray)(lambda array: ({}, []))
    try:
        assert not early.sends_arrays(None) and not make_dialect().sends_arrays(None)
    finally:
        dask_serialize.register(np.ndarray)(serialize_numpy_ndarray)
    assert early.sends_arrays(None)


def test_the_family_belongs_to_whoever_registers_it():
    early = make_dialect()
    own = families["dask"]
    families["dask"] = (None, None, False)
    try:
        assert not early.sends_arrays(None) and not early.receives_arrays(None)
        assert not make_dialect().sends_arrays(None)
    finally:
        families["dask"] = own
    assert early.sends_arrays(None) and early.receives_arrays(None)


def test_sizes_that_cannot_be_found_are_told(caplog):
    class Endless:
        def __sizeof__(self):
            raise RecursionError

    dialect = make_dialect()
    assert dialect.sizeof(Endless()) == -1
    assert dialect.sizeof(b"x" * 1000) >= 1000
