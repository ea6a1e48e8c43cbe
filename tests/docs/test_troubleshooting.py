"""The page on troubleshooting has every error, reason of a closed comm, and line of a log."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from dask_fabric import errors

from .blocks import ROOT

PAGE = " ".join((ROOT / "docs/troubleshooting.md").read_text().split())
SOURCES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "cython").rglob("*.pyx")]
# Calls that log, and texts that are passed to them. The first argument of `warn` names the kind.
_CALL = re.compile(
    r"(?:logger\.(?:warning|error|exception)\(|\.warn\(\s*f?\"[^\"]*\",|_log_once\(|\btext = \(?)"
    r"\s*(?P<text>(?:f?\"(?:[^\"\\]|\\.)*\"\s*)+)"
)
_CLOSES = re.compile(
    r"(?:ChannelClosedError\(|\btext = \()\s*(?P<text>(?:f?\"(?:[^\"\\]|\\.)*\"\s*)+)"
)
_WARNS = re.compile(r"(?:warn|warning|_log_once)\([^)]*\btext\b")
_LITERAL = re.compile(r"f?(\"(?:[^\"\\]|\\.)*\")")
_HOLE = re.compile(r"%\w|\{[^}]*\}")
_LEAST_CHARACTERS = 7
# Dask's own words, which the codec has to say too; and how many lines were left out.
EXEMPT = ("truncated data stream", " more ")


def lines() -> Iterator[str]:
    """Give the text of each log line, without those of Dask."""
    for path in SOURCES:
        if "bench" not in path.parts and "cli" not in path.parts:
            source = path.read_text()
            for call in _CALL.finditer(source):
                if "text = " in call[0] and not _WARNS.search(source, call.end(), call.end() + 300):
                    continue
                text = "".join(map(ast.literal_eval, _LITERAL.findall(call["text"])))
                if not any(exempt in text for exempt in EXEMPT) and text != "%s":
                    yield text


@pytest.mark.parametrize("line", sorted(set(lines())))
def test_every_log_line_is_on_the_page(line):
    parts = [part.strip(" :;,(") for part in _HOLE.split(line)]
    assert any(len(part) >= _LEAST_CHARACTERS and part in PAGE for part in parts)


def reasons() -> Iterator[str]:
    """Give the text of each `ChannelClosedError`, without those that repeat another error."""
    for path in SOURCES:
        source = path.read_text()
        for call in _CLOSES.finditer(source):
            following = source[call.end() : call.end() + 100]
            if "text = " in call[0] and "abort(ChannelClosedError(text))" not in following:
                continue
            text = "".join(map(ast.literal_eval, _LITERAL.findall(call["text"])))
            if not text.startswith("{type("):
                yield text


@pytest.mark.parametrize("reason", sorted(set(reasons())))
def test_every_reason_of_a_closed_comm_is_on_the_page(reason):
    table = PAGE.partition("## CommClosedError")[2].partition("## Log lines")[0]
    quoted = [text.partition("...")[0].rstrip() for text in re.findall(r"`([^`]+)`", table)]
    assert any(len(text) >= _LEAST_CHARACTERS and reason.startswith(text) for text in quoted)


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_on_the_page(kind):
    assert kind is errors.FabricError or f"`{kind.__name__}`" in PAGE
