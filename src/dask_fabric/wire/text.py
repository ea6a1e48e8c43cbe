"""Text from a peer, made safe for a log, an exception or a terminal."""

from __future__ import annotations

NAME_LENGTH_LIMIT = 256


def one_line(text: str) -> str:
    """Put a text on one line: a space for whitespace, and ``?`` for other unprintable characters.

    Line breaks could forge log lines, and control characters could control a terminal.
    """
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(character if character.isprintable() else "?" for character in line)


def is_name(value: object) -> bool:
    """Whether a value from a peer is a name: short printable text."""
    return isinstance(value, str) and len(value) <= NAME_LENGTH_LIMIT and value.isprintable()
