"""Links of README and the documentation lead to files and headings that are there."""

from __future__ import annotations

import re

import pytest

from .blocks import PAGES, ROOT

_FENCE = re.compile(r"^ *```.*?^ *```", re.M | re.S)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.M)
_HTML_ID = re.compile(r'id="([^"]+)"')


def anchors(text: str) -> set[str]:
    """The anchors of a page, as Python-Markdown and GitHub make them of headings."""
    headings = (found.replace("`", "") for found in _HEADING.findall(_FENCE.sub("", text)))
    slugs = (re.sub(r"[^\w\- ]", "", heading).strip().lower() for heading in headings)
    return {slug.replace(" ", "-") for slug in slugs} | set(_HTML_ID.findall(text))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = _CODE.sub("", _FENCE.sub("", page.read_text()))
    for link in _LINK.findall(text):
        if link.startswith(("http://", "https://")):
            continue  # CI has no way to them
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text()), f"{page.name}: {link}"
