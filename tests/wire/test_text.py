"""What a peer says, on one line, and in tables."""

from __future__ import annotations

import pytest

from dask_fabric.wire.text import one_line, table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("as it is, ö and 漢", "as it is, ö and 漢"),
        ("", ""),
        ("bye\n2026-01-01 - CRITICAL - forged", "bye 2026-01-01 - CRITICAL - forged"),
        ("\x1b[31mred\r\x07\x9b", " [31mred   "),
        ("line\u2028paragraph\u2029\u202eright to left", "line paragraph  right to left"),
        ("\udce9", " "),
    ],
)
def test_what_cannot_be_printed_becomes_a_space(text, expected):
    assert one_line(text) == expected


def test_a_table():
    assert table([]) == []
    rows = [("a", "bcd", "e"), (1, "x\n\x1b[2J", ""), ("ghi", "", "j")]
    assert table(rows) == ["a    bcd     e", "1    x ?[2J", "ghi          j"]
    assert table(rows[:2], has_head=True) == ["a  bcd     e", "-  ------  -", "1  x ?[2J"]
    assert table([("a", "b"), ("cd", "")], has_head=True, markdown=True) == [
        "| a  | b |",
        "| -- | - |",
        "| cd |   |",
    ]


def test_the_last_cell_of_a_row_is_wrapped():
    rows = [("name", "some words that are long"), ("a longer cell",), ("b", "c", "d")]
    assert table(rows, start="- ", width=20) == [
        "- name  some words",
        "        that are",
        "        long",
        "- a longer cell",
        "- b     c  d",
    ]
