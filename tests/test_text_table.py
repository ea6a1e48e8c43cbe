"""Tables as text: columns, rules, wrapping, and cells that cannot be printed."""

from __future__ import annotations

from dask_fabric.text_table import table


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
