"""A peer's dtypes: only texts that NumPy writes are read, and only to make arrays."""

import pickle
import struct
import subprocess
import sys

import msgpack
import numpy as np
import pytest
from distributed.protocol import Serialize
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dask_fabric.errors import ProtocolError

UNITS = ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as")
REFERENCE = b"\x81\xab__Payload__\x01"


def message_of(text, frame=b""):
    """A header with an array without items, or with one."""
    entry = struct.pack("<4B", 1, 1, 1, len(text)) + text + struct.pack("<Q", bool(frame))
    return b"\xc1\x01\0\0\0" + entry + REFERENCE, [frame]


def is_taken(codec, text, deserialize=True):
    try:
        codec.decode(*message_of(text), deserialize)
    except ProtocolError as error:
        assert "dtype" in str(error)
        return False
    return True


def spelled(kind, size, unit=""):
    return np.dtype(f"{kind}{size}{unit}")


number_dtypes = st.sampled_from(
    [np.dtype(code) for code in "?bBhHiIlLqQefdgFDG"] + [np.dtype("M8"), np.dtype("m8")]
)
string_dtypes = st.builds(spelled, st.sampled_from("SU"), st.integers(1, (2**31 - 1) // 4))
time_dtypes = st.builds(
    lambda kind, multiple, unit: spelled(kind, 8, f"[{multiple}{unit}]"),
    st.sampled_from("mM"),
    st.integers(1, 2**31 - 1),
    st.sampled_from(UNITS),
)


@given(
    dtype=number_dtypes | string_dtypes | time_dtypes | hnp.scalar_dtypes(),
    swapped=st.booleans(),
)
def test_each_dtype_that_is_sent_is_taken(codec, dtype, swapped):
    if swapped:
        dtype = dtype.newbyteorder()
    array = np.empty(0, dtype)
    dtype = array.dtype  # NumPy gives a time without a unit its own order
    header, frames = codec.encode(Serialize(array))
    assert header[5] == 1  # as an array, and not by distributed
    assert dtype.str.encode() in header
    assert codec.decode(header, frames).dtype == dtype
    assert codec.decode(header, frames, False).header["sub-header"]["dtype"] == (0, dtype.str)


def known_to_numpy(text):
    """What NumPy makes of a text that it would write itself.

    Not of times in multiples of 0, which it writes too: it divides by them.
    """
    try:
        dtype = np.dtype(text)
    except (TypeError, ValueError, SyntaxError, DeprecationWarning):
        return None
    if dtype.kind in "mM" and np.datetime_data(dtype)[1] == 0:
        return None
    return dtype if dtype.str == text and dtype.itemsize and dtype.kind in "biufcmMSU" else None


letters = st.sampled_from("<>|=biufcmMSUVOT0123456789[]smhDYnpa")


@given(
    text=st.text(letters, max_size=12)
    | st.builds("".join, st.tuples(st.sampled_from("<>|"), letters, st.text("1248360", max_size=3)))
    | st.builds(
        "".join,
        st.tuples(
            st.sampled_from(["<m8[", ">M8[", "|m8["]),
            st.text("0123456789", max_size=11),
            st.sampled_from([*UNITS, "B", "μs", "", " s", "s ", "ss", "generic"]),
            st.sampled_from(["]", "", "]]", "][s]"]),
        ),
    )
)
def test_exactly_what_numpy_writes_is_taken(codec, text):
    expected = known_to_numpy(text) is not None
    assert is_taken(codec, text.encode()) == expected
    assert is_taken(codec, text.encode(), deserialize=False) == expected


ENDS_NUMPY = [
    b"<m8[s/0]",
    b"<M8[s/0]",
    b"<m8[3s/0]",
    b"<m8[0ns]",
    b"<M8[0Y]",
    b"<M8[s/2]",
    b"<m8[Y/0]",
]


@pytest.mark.parametrize("text", ENDS_NUMPY)
@pytest.mark.parametrize("deserialize", [True, False])
def test_texts_that_end_numpy_do_not_reach_it(codec, text, deserialize):
    assert not is_taken(codec, text, deserialize)
    assert codec.offload_bytes(*message_of(text)) == 0


def serialized(sub_header):
    header = msgpack.packb({"serializer": "dask", "sub-header": sub_header})
    return b"\xc1\x01\0\0\0" + struct.pack("<BIQ", 2, 0, len(header)) + header + REFERENCE


@pytest.mark.parametrize(
    "sub_header",
    [
        {"dtype": (0, "<m8[s/0]")},
        {"data-header": {"dtype": (0, "<m8[s/0]")}},
        {"dtype": (0, [("a", "<f8"), ("b", "<m8[s/0]")])},
        {"dtype": (0, "<f8,<m8[s/0]")},
        {"typestr": "<M8[s/0]"},
        {"dtype": (0, "timedelta64[s/0]")},
        {"dtype": (0, b"<m8[s/0]")},
        {"dtype": b"<m8[s/0]"},
    ],
)
@pytest.mark.parametrize("deserialize", [True, False])
def test_they_do_not_reach_it_in_a_header_of_distributeds_either(codec, sub_header, deserialize):
    """A scheduler passes payloads through, and deserializes some of them later, by Dask alone."""
    with pytest.raises(TypeError, match="NumPy writes no dtype as"):
        codec.decode(serialized(sub_header), [], deserialize)


@pytest.mark.parametrize("dtype", ["datetime64[ns]", "<M8[25s]", (1, pickle.dumps("a[b/c"))])
def test_units_without_a_divisor_and_pickled_dtypes_are_let_through(codec, dtype):
    assert codec.decode(serialized({"dtype": dtype}), [], False).header["sub-header"]["dtype"]


def test_other_text_that_looks_like_it_is_let_through(codec):
    array = np.broadcast_to(np.arange(3).astype("M8[25s]"), (2, 3))
    got = codec.decode(*codec.encode(Serialize({"path/of[8[/": [array]})))
    assert got["path/of[8[/"][0].dtype == array.dtype


MAKES_NONE = """
import numpy
real, made = numpy.dtype, []
numpy.dtype = lambda text: made.append(text) or real(text)
import dask_fabric.codec.dtypes
numpy.dtype = real
from dask_fabric.comm.serialize.distributed import codec
made.clear()
header = bytes.fromhex("{header}")
frames = [bytearray(24)]
assert codec.offload_bytes(header, frames) == 0
print(made, codec.decode(header, frames, False).header["sub-header"]["dtype"], made)
codec.decode(header, frames)
print(made)
"""


def test_who_does_not_deserialize_makes_no_dtype(codec):
    header, _ = codec.encode(Serialize(np.arange(3.0)))
    program = MAKES_NONE.format(header=header.hex())
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[] (0, '<f8') []", "['<f8']"], done.stderr
