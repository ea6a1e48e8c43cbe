"""Text of a peer, made fit for a log, an exception or a terminal."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Return *text* on one line: a space for each character that cannot be printed.

    Line breaks would forge lines of a log, and control characters are orders to a terminal.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else " " for character in text)
