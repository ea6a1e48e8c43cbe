"""Declarations of configuration keys: how a value is parsed, and what it means.

``docs/generate.py`` generates the YAML of defaults, the schema and the table in the docs from them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dask.utils import parse_bytes, parse_timedelta

SIZE_BYTES_LIMIT = 2**47  # the address space of a process
SECONDS_LIMIT = 366 * 86400
SECRET = "secret"  # the unit of a key whose value is never shown
NOT_SHOWN = "(not shown)"
_LIKE_A_KEY = re.compile("[0-9a-fA-F]{32,}")
_SIZE = "a size in bytes, such as 67108864 or '64 MiB'"
_TIME = "a time, such as '10s', '500 ms' or a number of seconds"
_SIZE_SCHEMA = {"$ref": "#/$defs/size"}


class Key(NamedTuple):
    """One key.

    Attributes
    ----------
    field : str
        The name of its value in the settings, with the unit.
    default : object
        As written in YAML.
    unit : str
        The kind of value, as the docs name it.
    parse : callable
        Converts the value; raises an error if it is invalid.
    expected : str
        What a valid value is, for that error.
    schema : mapping
        Its JSON Schema.
    comment : str
        A few words, for the YAML.
    about : str
        What it does, in Markdown.
    """

    field: str
    default: Any
    unit: str
    parse: Callable[[Any], Any]
    expected: str
    schema: Mapping[str, Any]
    comment: str
    about: str

    def public(self, value: object) -> object:
        """Give a value as others may see it: not if it is, or looks like, a secret."""
        hidden = (self.unit == SECRET and value is not None) or shown(value) != repr(value)
        return NOT_SHOWN if hidden else value

    def shown(self, value: object) -> str:
        """Write a value for people, unless it is a secret."""
        return NOT_SHOWN if self.unit == SECRET and value is not None else shown(value)


class Section(NamedTuple):
    """Some keys under a common name.

    Attributes
    ----------
    about : str
        What they are for.
    keys : mapping of str to Key
        By their names within the section.
    comment : str
        A few words, for the YAML.
    """

    about: str
    keys: Mapping[str, Key]
    comment: str = ""


# ---- kinds of keys


def size(
    field: str, default: Any, comment: str, about: str, *, least: int = 0, note: str = ""
) -> Key:
    """Declare a number of bytes, at least *least*; the *note* explains the limits."""
    note = note or (f"at least {least}" if least else "")
    expected = ", ".join(filter(None, (_SIZE, note)))
    return Key(
        field, default, "size", lambda v: as_size(v, least), expected, _SIZE_SCHEMA, comment, about
    )


def optional_size(field: str, comment: str, about: str) -> Key:
    """Declare a number of bytes, or null, which is the default: the value is then None."""
    return Key(
        field,
        None,
        "size",
        lambda v: None if v is None else as_size(v),
        f"null, or {_SIZE}",
        {"anyOf": [{"type": "null"}, _SIZE_SCHEMA]},
        comment,
        about,
    )


def seconds(
    field: str,
    default: Any,
    comment: str,
    about: str,
    *,
    least: float = 0.0,
    most: float = SECONDS_LIMIT,
    note: str = "",
) -> Key:
    """Declare a time between two limits; the *note* explains them."""
    expected = f"{_TIME}{note}"
    schema = {"$ref": "#/$defs/duration"}
    return Key(
        field,
        default,
        "time",
        lambda v: _as_seconds(v, least, most),
        expected,
        schema,
        comment,
        about,
    )


def count(field: str, default: Any, comment: str, about: str, *, most: int) -> Key:
    """Declare a whole number from 1 to *most*."""
    return Key(
        field,
        default,
        "count",
        lambda v: as_count(v, most),
        f"a whole number from 1 to {most}",
        {"type": "integer", "minimum": 1, "maximum": most},
        comment,
        about,
    )


def switch(field: str, default: bool, comment: str, about: str) -> Key:
    """Declare a switch: on or off."""
    schema = {"type": "boolean"}
    return Key(field, default, "switch", _as_switch, "true or false", schema, comment, about)


def switch_or_auto(field: str, comment: str, about: str) -> Key:
    """Declare a switch: on, off, or auto, which the process decides itself; auto gives None."""
    return Key(
        field,
        "auto",
        "switch",
        lambda v: None if v == "auto" else _as_switch(v),
        "auto, true or false",
        {"enum": ["auto", True, False]},
        comment,
        about,
    )


def full_path(field: str, of: str, comment: str, about: str) -> Key:
    """Declare the full path *of* something, or null."""
    return Key(
        field,
        None,
        "path",
        _as_full_path,
        f"null, or the full path of {of}",
        {"type": ["string", "null"]},
        comment,
        about,
    )


def choice(field: str, choices: Sequence[str], comment: str, about: str) -> Key:
    """Declare a choice of several names; the first is the default."""

    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(value)
        return str(value)

    expected = " or ".join(choices)
    schema = {"enum": list(choices)}
    return Key(field, choices[0], "name", parse, expected, schema, comment, about)


# ---- values


def shown(value: object) -> str:
    """Write a value for people, without what may be a secret that stands in the wrong place."""
    return _LIKE_A_KEY.sub(NOT_SHOWN, repr(value))


def as_size(value: Any, least: int = 0) -> int:
    """Parse a number of bytes."""
    _check_quantity(value, (int, str))
    return within(parse_bytes(value), least, SIZE_BYTES_LIMIT)


def as_count(value: object, most: int) -> int:
    """Check a whole number from 1 to *most*."""
    if type(value) is not int:
        raise TypeError(value)
    return within(value, 1, most)


def within(value: float, low: float, high: float) -> Any:
    """Return the value if it is between the limits, else raise."""
    if not low <= value <= high:
        raise ValueError(value)
    return value


def _as_seconds(value: Any, least: float, most: float) -> float:
    _check_quantity(value, (int, float, str))
    return float(within(parse_timedelta(value, default="seconds"), least, most))


def _check_quantity(value: object, kinds: tuple[type, ...]) -> None:
    if type(value) not in kinds:
        raise TypeError(value)
    # Dask parses "" and "MiB" as 1 and 1 MiB.
    if isinstance(value, str) and not re.search(r"\d", value):
        raise ValueError(value)


def _as_switch(value: object) -> bool:
    if type(value) is not bool:
        raise TypeError(value)
    return value


def _as_full_path(value: object) -> str | None:
    if value is None:
        return None
    if type(value) is not str:
        raise TypeError(value)
    if "\0" in value or not os.path.isabs(os.path.expanduser(value)):
        raise ValueError(value)
    return value
