"""Text from a peer, on one line."""

from __future__ import annotations

import pytest

from dask_fabric.wire.text import one_line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("as it is, ö and 漢", "as it is, ö and 漢"),
        ("", ""),
        ("two  spaces\tand a tab ", "two spaces and a tab"),
        ("bye\n2026-01-01 - CRITICAL - forged", "bye 2026-01-01 - CRITICAL - forged"),
        ("\x1b[31mred\r\x07\x9b", "?[31mred ??"),
        ("line\u2028paragraph\u2029\u202eright to left", "line paragraph ?right to left"),
        ("\udce9", "?"),
    ],
)
def test_line_breaks_and_unprintable_characters_are_replaced(text, expected):
    assert one_line(text) == expected
