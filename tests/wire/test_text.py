"""What a peer says, on one line."""

from __future__ import annotations

import pytest

from dask_fabric.wire.text import one_line


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
