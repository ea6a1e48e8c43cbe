"""Text of a peer, made fit for a log, an exception or a terminal."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Return *text* on one line: a space for each character that cannot be printed.

    Line breaks would forge lines of a log, and control characters are orders to a terminal.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else " " for character in text)


NAME_LENGTH_LIMIT = 256


def is_name(value: object) -> bool:
    """Whether a value of a peer is a name: a printable text that is not long."""
    return isinstance(value, str) and len(value) <= NAME_LENGTH_LIMIT and value.isprintable()
