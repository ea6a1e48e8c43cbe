"""Write all that is made from the keys of the configuration: the YAML, the schema, and the table.

Run it with the package installed: ``python docs/tables.py``. A test says whether they are fresh.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dask_fabric.config.table import keys, sections
from dask_fabric.keys import Key, Section

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "dask_fabric"
BEGIN = "<!-- made by docs/tables.py: begin -->\n"
END = "<!-- made by docs/tables.py: end -->\n"
_COMMENT_COLUMN = 30
_TYPES = {
    "size": {
        "description": "A number of bytes, such as 67108864 or 64 MiB.",
        "type": ["string", "integer"],
        "minimum": 0,
    },
    "duration": {
        "description": "A time, such as 10s, 500 ms or a number of seconds.",
        "type": ["string", "number"],
        "minimum": 0,
    },
}


def made() -> dict[Path, str]:
    """Give the content of every file."""
    page = ROOT / "docs" / "configuration.md"
    return {
        PACKAGE / "dask_fabric.yaml": "".join(_yaml()),
        PACKAGE / "dask_fabric-schema.yaml": yaml.safe_dump(_schema(), sort_keys=False, width=96),
        page: _with_table(page.read_text()),
    }


def _yaml() -> Iterator[str]:
    yield "# Made by docs/tables.py from the keys of the configuration.\n"
    yield "fabric:\n"
    for name, one in sections().items():
        if isinstance(one, Key):
            yield _commented(f"  {name}: {_value(one.default)}", one.comment) + "\n"
            continue
        yield _commented(f"  {name}:", one.comment)
        for part, key in one.keys.items():
            yield _commented(f"    {part}: {_value(key.default)}", key.comment)
        yield "\n"


def _commented(line: str, comment: str) -> str:
    return f"{line:<{_COMMENT_COLUMN}}# {comment}\n" if comment else f"{line}\n"


def _value(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _schema() -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "fabric": _object(
                "The fabric:// communication backend of Dask distributed.",
                {name: _of(one) for name, one in sections().items()},
            )
        },
        "$defs": _TYPES,
    }


def _of(one: Section | Key) -> dict[str, Any]:
    if isinstance(one, Key):
        return {**one.schema, "description": _plain(one.about)}
    return _object(one.about, {part: _of(key) for part, key in one.keys.items()})


def _object(about: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "description": about,
        "properties": properties,
    }


def _plain(markdown: str) -> str:
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", markdown).replace("`", "")


def _with_table(page: str) -> str:
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    rows = [
        f"| `fabric.{name}` | `{_value(key.default)}` | {key.unit} | {key.about} |\n"
        for name, key in keys().items()
    ]
    head = "| key | default | unit | meaning |\n| --- | --- | --- | --- |\n"
    return before + BEGIN + head + "".join(rows) + END + after


if __name__ == "__main__":
    for path, content in made().items():
        path.write_text(content)
