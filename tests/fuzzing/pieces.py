"""How an input becomes numbers, parts and streams.

Any bytes are a valid input, so that no change of the fuzzer is in vain: what is missing at the end
is 0 or empty. The functions at the end do the reverse, for seeds.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

# Stands for many zero bytes. Large frames reach other code than small ones, and would fill inputs
# with bytes that are worth no change.
MANY = b"\xf1\xf2"
_MANY = re.compile(re.escape(MANY) + rb"(..)", re.DOTALL)
_UNIT_BYTES = 16
_FILL_BYTES_LIMIT = 400 << 10
_LENGTH = struct.Struct("<H")
_SIZES = (1, 7, 24, 1000, 1 << 14, 1 << 16, 1 << 20)
_PIECE_COUNT_LIMIT = 50


class Input:
    """Cuts an input from its beginning to its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def raw(self, nbytes: int) -> bytes:
        taken = self._data[self._at : self._at + nbytes]
        self._at += nbytes
        return taken

    def number(self, width: int = 1) -> int:
        return int.from_bytes(self.raw(width), "little")

    def part(self) -> bytes:
        """Give a part whose length precedes it in two bytes."""
        return self.raw(self.number(2))

    def rest(self) -> bytes:
        return self.raw(len(self._data))


def expand(data: bytes, limit_bytes: int = _FILL_BYTES_LIMIT) -> bytes:
    """Replace each `MANY`, and the count after it, by as many units of zero bytes.

    Parameters
    ----------
    data : bytes
    limit_bytes : int
        Of all zero bytes together.
    """
    if MANY not in data:
        return data
    left_bytes = limit_bytes

    def fill(match: re.Match) -> bytes:
        nonlocal left_bytes
        nbytes = min(_LENGTH.unpack(match[1])[0] * _UNIT_BYTES, left_bytes)
        left_bytes -= nbytes
        return bytes(nbytes)

    return _MANY.sub(fill, data)


def cut(data: bytes, choice: int) -> Iterator[bytes]:
    """Cut a stream into pieces as they may arrive; *choice* is any number."""
    size = max(_SIZES[choice % len(_SIZES)], len(data) // _PIECE_COUNT_LIMIT)
    return (data[at : at + size] for at in range(0, len(data), size))


# ---- for seeds


def part(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def many(nbytes: int) -> bytes:
    """Give what `expand` makes *nbytes* zero bytes of; a multiple of 16."""
    count, rest = divmod(nbytes, _UNIT_BYTES)
    assert not rest
    return MANY + _LENGTH.pack(count)
