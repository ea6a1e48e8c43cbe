"""Draw the states of a connection into docs/wire-protocol.md, from the table of the code.

Run it with the package installed: ``python docs/draw.py``. A test says whether the page is fresh.
"""

from __future__ import annotations

from pathlib import Path

from dask_fabric.wire.states import transitions

PAGE = Path(__file__).with_name("wire-protocol.md")
BEGIN = "<!-- drawn by docs/draw.py: begin -->\n"
END = "<!-- drawn by docs/draw.py: end -->\n"


def diagram() -> str:
    """Give the diagram of one half of a connection, in Mermaid."""
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR", "    [*] --> GREETING"]
    for state, events in transitions().items():
        by_next: dict[str, list[str]] = {}
        for event, following in events.items():
            by_next.setdefault(following, []).append(event)
        lines += [
            f"    {state} --> {following}: {', '.join(named)}"
            for following, named in by_next.items()
            if (state, following) != ("DONE", "DONE")
        ]
    return "\n".join([*lines, "    DONE --> [*]", "```"]) + "\n"


def drawn(page: str) -> str:
    """Give the text of the page with the diagram of now."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + diagram() + END + after


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text()))
