"""The code blocks of README and of the documentation, and the commands in them."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)
_INLINE = re.compile(r"`((?:dask|make) [^`\n]+)`")
_REDIRECTION = re.compile(r"\d?>.*")


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes
    ----------
    page : str
        The file, relative to the repository.
    number : int
        Counted within the page, from 1.
    language : str
    title : str
        The name of the file that readers save it as, or "".
    text : str
        Without the indentation of the fence.
    """

    page: str
    number: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page} {self.number}"


def blocks() -> Iterator[Block]:
    """Give all blocks of all pages."""
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        for number, found in enumerate(_BLOCK.finditer(page.read_text()), 1):
            title, text = found["title"] or "", textwrap.dedent(found["text"])
            yield Block(name, number, found["language"], title, text)


def inline_commands() -> Iterator[tuple[str, str]]:
    """Give the commands of Dask and of make in the prose of all pages, with their pages."""
    for page in PAGES:
        prose = _BLOCK.sub("", page.read_text())
        for found in _INLINE.findall(prose):
            yield str(page.relative_to(ROOT)), found


def commands(text: str) -> Iterator[list[str]]:
    """Give the words of each command of a shell script, without comments and redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            ends = [n for n, word in enumerate(words) if word in ("&", "&&", "||", ";", "|")]
            end = ends[0] if ends else len(words)
            command = _without_redirections(words[:end])
            if command:
                yield command
            words = words[end + 1 :]


def _without_redirections(words: list[str]) -> list[str]:
    kept: list[str] = []
    for number, word in enumerate(words):
        if not _REDIRECTION.fullmatch(word) and not (number and words[number - 1] == ">"):
            kept.append(word)
    return kept
