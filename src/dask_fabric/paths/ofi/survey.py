"""The libfabrics of this host, for the doctor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dask_fabric.errors import UnavailableError
from dask_fabric.paths.ofi.domains import Domain, pick
from dask_fabric.paths.ofi.kinds import on_this_host
from dask_fabric.paths.ofi.library import Library, choose, wanted_kinds


@dataclass(frozen=True)
class Survey:
    """The libraries that were found, the chosen one, and the reasons.

    Attributes
    ----------
    wanted : bool
        Whether processes here look for libfabric at all.
    why_wanted : str
        The reason for that.
    provider : str
        The provider that is used, or "".
    has_network : bool
        Whether it is one for a fast network.
    reason : str
        Why it is used, or why none is.
    libraries : tuple of (str, str)
        Rows of the report.
    """

    wanted: bool = False
    why_wanted: str = "unknown"
    provider: str = ""
    has_network: bool = False
    reason: str = "unknown"
    libraries: tuple[tuple[str, str], ...] = ()


def inspect_ofi(settings: Any) -> Survey:
    """Probe every library, each in a process of its own, and choose one."""
    kinds = wanted_kinds(settings.enabled, settings.provider)
    wanted = bool(kinds) and settings.enabled is not False
    why_wanted = _why_wanted(settings)
    try:
        choice = choose(kinds, settings.library, settings.options, survey=True, logs=False)
    except UnavailableError as exc:
        return Survey(wanted, why_wanted, reason=str(exc), libraries=(("none", str(exc)),))
    rows = []
    if choice.library and choice.kind:
        rows.append(("chosen", f"{choice.kind.name}: {_named(choice.library)}: {choice.reason}"))
        rows.append(("card", _card(choice.library.domains_of(choice.kind.name), settings.domain)))
    elif wanted:
        rows.append(("none", choice.reason))
    rows += [("not chosen", f"{_named(one)}: {reason}") for one, reason in choice.refused]
    return Survey(
        wanted=wanted,
        why_wanted=why_wanted,
        provider=choice.kind.name if choice.kind else "",
        has_network=bool(choice.kind and choice.kind.network),
        reason=choice.reason,
        libraries=tuple(rows),
    )


def _why_wanted(settings: Any) -> str:
    if settings.enabled is False:
        return "fabric.ofi.enabled is false"
    if settings.provider:
        return f"fabric.ofi.provider is {settings.provider}"
    names = [f"{kind.name} ({kind.network})" for kind in on_this_host()]
    if names:
        return f"this host has devices for {', '.join(names)}"
    return "this host has no device of Slingshot, EFA or Omni-Path"


def _card(found: Sequence[Domain], wanted: str | None) -> str:
    try:
        chosen = pick(found, wanted).name
    except UnavailableError as exc:
        return str(exc)
    others = [name for name in dict.fromkeys(one.name for one in found) if name != chosen]
    reason = "fabric.ofi.domain" if wanted else "the nearest" if found[0].pci else "the first"
    return f"{chosen}: {reason}; others: {', '.join(others)}" if others else chosen


def _named(one: Library) -> str:
    version = ".".join(map(str, one.version)) or "unknown version"
    return f"{version} at {one.path} ({one.source})"
