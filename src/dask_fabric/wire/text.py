"""Text from a peer, made safe for a log, an exception or a terminal."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Return *text* on one line, with a space for each unprintable character.

    Line breaks could forge log lines, and control characters could control a terminal.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else " " for character in text)


NAME_LENGTH_LIMIT = 256


def is_name(value: object) -> bool:
    """Whether a value from a peer is a name: short printable text."""
    return isinstance(value, str) and len(value) <= NAME_LENGTH_LIMIT and value.isprintable()
