import numpy as np
import pytest
from distributed.protocol import Serialized, dumps, loads
from hypothesis import settings

from dask_fabric.codec.codec import Codec
from dask_fabric.comm.serialize.distributed import make_dialect

# The time of an example depends on the load of the machine.
settings.register_profile("dask_fabric", deadline=None)
settings.load_profile("dask_fabric")


@pytest.fixture(scope="session")
def codec():
    return Codec(make_dialect())


class Channel:
    """Transport frames: each arrives in writeable memory of its own."""

    def __init__(self, codec):
        self.codec = codec

    def receive(self, frames):
        return [memoryview(bytearray(frame)) for frame in frames]

    def send(self, message, deserialize=True, deserializers=None, **options):
        header, frames = self.codec.encode(message, **options)
        frames = self.receive(frames)
        return self.codec.decode(header, frames, deserialize, deserializers)

    def send_by_tcp(self, message, deserialize=True, deserializers=None, **options):
        frames = self.receive(dumps(message, **options))
        return loads(frames, deserialize=deserialize, deserializers=deserializers)

    def forward(self, message, **options):
        """Through a scheduler, which does not deserialize."""
        return self.send(self.send(message, deserialize=False, **options), **options)

    def forward_by_tcp(self, message, **options):
        passed = self.send_by_tcp(message, deserialize=False, **options)
        return self.send_by_tcp(passed, **options)


@pytest.fixture(scope="session")
def channel(codec):
    return Channel(codec)


def assert_same(left, right):
    """Compare values and types, and for arrays everything that a user can see."""
    assert type(left) is type(right)
    if isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert left.flags.writeable == right.flags.writeable
        assert left.flags.c_contiguous == right.flags.c_contiguous
        assert left.flags.f_contiguous == right.flags.f_contiguous
        assert left.dtype.hasobject or left.tobytes() == right.tobytes()
        assert not left.dtype.hasobject or left.tolist() == right.tolist()
    elif isinstance(left, Serialized):
        assert left.header == right.header
        assert list(map(bytes, left.frames)) == list(map(bytes, right.frames))
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    elif left != left:
        assert right != right
    else:
        assert left == right


@pytest.fixture(scope="session")
def same():
    return assert_same
