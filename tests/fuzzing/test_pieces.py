"""Inputs: whatever they are, they can be cut, and seeds are read as they were written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.fuzzing.pieces import Input, cut, expand, many, part


def test_what_is_missing_is_nothing():
    empty = Input(b"")
    assert (empty.number(), empty.part(), empty.rest(), bool(empty)) == (0, b"", b"", False)
    assert Input(b"\x09\0ab").part() == b"ab"


def test_parts_are_read_as_they_were_written():
    read = Input(b"\7" + part(b"one") + part(b"") + b"rest")
    assert (read.number(), read.part(), read.part(), read.rest()) == (7, b"one", b"", b"rest")


def test_a_mark_stands_for_many_zeros():
    assert expand(b"a" + many(1600) + b"b" + many(16)) == b"a" + bytes(1600) + b"b" + bytes(16)
    assert expand(b"a" + many(1600) * 2, 2000) == b"a" + bytes(2000)


@given(st.binary(), st.integers(0, 255))
def test_pieces_join_to_the_stream(data, choice):
    pieces = list(cut(data, choice))
    assert b"".join(pieces) == data
    assert all(pieces)
