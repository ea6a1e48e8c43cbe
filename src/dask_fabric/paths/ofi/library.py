"""Choosing libfabric and its provider for this process.

Candidates are probed in a fixed order, each in a child process. Nothing is loaded here.
``docs/ofi.md`` is the page for users.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dask_fabric.errors import UnavailableError
from dask_fabric.paths.ofi import libfabric
from dask_fabric.paths.ofi.domains import Domain
from dask_fabric.paths.ofi.kinds import BY_NAME, Kind, on_this_host
from dask_fabric.paths.places import (
    SYSTEM_FOLDERS,
    Candidate,
    in_folder,
    library_file,
    mapped_files,
    search_path,
)
from dask_fabric.paths.probing import PROBE_SECONDS, output_of

logger = logging.getLogger(__name__)

PROGRAM = Path(__file__).with_name("probe.py")
SONAME = "libfabric.so.1"
SITE_VARIABLES = ("EBROOTLIBFABRIC", "LIBFABRIC_ROOT", "LIBFABRIC_HOME", "LIBFABRIC_DIR")
CRAY_FOLDER = Path("/opt/cray/libfabric")
VENDOR_FOLDERS = ("/opt/amazon/efa/lib64", "/opt/amazon/efa/lib")
NAMES_LIMIT = 1024


@dataclass(frozen=True)
class Library:
    """The result of probing a candidate.

    Attributes
    ----------
    path : str
        The file that was loaded, with links resolved; the candidate's path if loading failed.
    source : str
        The place in the search order that it comes from.
    version : tuple of int
        Two numbers; empty if it could not be loaded.
    domains : tuple of Domain
        Those that can read remote memory on this host.
    error : str
        Why it cannot be used, or "".
    """

    path: str
    source: str
    version: tuple[int, ...] = ()
    domains: tuple[Domain, ...] = ()
    error: str = ""

    @property
    def providers(self) -> tuple[str, ...]:
        """Those of its domains."""
        return tuple(dict.fromkeys(one.provider for one in self.domains))

    def domains_of(self, provider: str) -> list[Domain]:
        """Give the domains of one provider."""
        return [one for one in self.domains if one.provider == provider]

    def __str__(self) -> str:
        return f"libfabric {'.'.join(map(str, self.version)) or '?'} at {self.path} ({self.source})"


@dataclass(frozen=True)
class Choice:
    """The library and provider to use, or None, with the reason; and the refused libraries."""

    library: Library | None
    kind: Kind | None
    reason: str
    refused: tuple[tuple[Library, str], ...] = ()


def wanted_kinds(enabled: bool | None, provider: str | None) -> tuple[Kind, ...]:
    """Give the providers to look for, in order: the named one, or those for this host's devices.

    Parameters
    ----------
    enabled : bool or None
        ``fabric.ofi.enabled``; None, which is auto, leaves out those that others serve as well.
    provider : str or None
        ``fabric.ofi.provider``.
    """
    if provider:
        return (BY_NAME[provider],)
    return tuple(kind for kind in on_this_host() if kind.auto or enabled)


def choose(
    kinds: tuple[Kind, ...],
    explicit: str | None = None,
    options: Iterable[tuple[str, str]] = (),
    survey: bool = False,
    logs: bool = True,
) -> Choice:
    """Find the first of these providers that a library offers, and log the choice once.

    Parameters
    ----------
    kinds : tuple of Kind
        The providers to look for, most wanted first.
    explicit : str, optional
        ``fabric.ofi.library``; no other is tried then.
    options : iterable of (str, str)
        ``fabric.ofi.options``.
    survey : bool
        Whether to probe every candidate, for a report, instead of stopping at the best.
    logs : bool
        Whether to log the choice.

    Raises
    ------
    UnavailableError
        The explicit library does not work.
    """
    variables = tuple(sorted(environment(options).items()))
    found: dict[str, Library] = {}
    refused = []
    for place in candidates(explicit):
        one = probe(place.path, place.source, variables)
        if one.error:
            refused.append((one, one.error))
        elif one.path in found:
            refused.append((one, f"the same as {found[one.path].source}"))
        else:
            found[one.path] = one
            if not survey and kinds and kinds[0].name in one.providers:
                break
    if explicit and not found:
        raise UnavailableError(
            f"fabric.ofi.library is {explicit!r}, which cannot be used: {refused[0][1]}"
        )
    choice = _best(tuple(found.values()), kinds, refused)
    if logs:
        _log_once(choice)
    return choice


def _best(
    found: tuple[Library, ...], kinds: tuple[Kind, ...], refused: list[tuple[Library, str]]
) -> Choice:
    for kind in kinds:
        for library in found:
            if kind.name in library.providers:
                others = [(one, _why_not(one, library, kind)) for one in found if one != library]
                reason = f"the first with {kind.name}"
                return Choice(library, kind, reason, (*refused, *others))
    names = " or ".join(kind.name for kind in kinds)
    offers = [(one, f"it offers {', '.join(one.providers) or 'nothing'} here") for one in found]
    if not found:
        reason = "no working libfabric was found"
    elif not kinds:
        reason = "this host has no device that is left to libfabric"
    else:
        reason = f"no libfabric was found that offers {names} here"
    return Choice(None, None, reason, (*refused, *offers))


def _why_not(one: Library, best: Library, kind: Kind) -> str:
    if kind.name in one.providers:
        return f"{best.source} comes first"
    return f"it does not offer {kind.name} here"


def candidates(explicit: str | None = None) -> list[Candidate]:
    """List the places to look at, in order; some may not exist.

    Several libraries can be loaded in one process, unlike those of UCX.
    """
    if explicit:
        path = library_file(Path(explicit).expanduser(), SONAME)
        return [Candidate("fabric.ofi.library", str(path))]
    loaded = [Candidate("already loaded", path) for path in mapped_files(r"libfabric\.so")]
    wheel = Path(sys.prefix, "lib/mpich")
    folders = (*VENDOR_FOLDERS, *SYSTEM_FOLDERS)
    rest = search_path(SONAME, SITE_VARIABLES, folders, [wheel])
    return [*loaded, *_of_cray(), *rest]


def _of_cray() -> Iterator[Candidate]:
    """Give those of HPE's Cray systems, the newest first."""
    for folder in sorted(CRAY_FOLDER.glob("*"), key=_numbers, reverse=True):
        yield from in_folder(SONAME, str(CRAY_FOLDER), folder / "lib64")


def _numbers(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name.split(".") if part.isdigit())


def environment(options: Iterable[tuple[str, str]], kind: Kind | None = None) -> dict[str, str]:
    """Give environment variables for libfabric. Variables already set win, then the options.

    Parameters
    ----------
    options : iterable of (str, str)
        Names, with ``FI_``, and values.
    kind : Kind, optional
        The provider to start; no other is started then, which saves time and memory.
    """
    values = dict(libfabric.QUIET)
    if kind is not None:
        # The parts of a layered provider are filtered by their own names.
        values.update(kind.variables, FI_PROVIDER=kind.name.replace(";", ","))
    values.update(options)
    return {name: value for name, value in values.items() if name not in os.environ}


@functools.cache
def probe(path: str, source: str, variables: tuple[tuple[str, str], ...] = ()) -> Library:
    """Probe the library *path* in a child process; errors are returned in the result."""
    try:
        environ: Mapping[str, str] = {**os.environ, **dict(variables)}
        output = output_of(PROGRAM, (libfabric.__file__, path), environ, PROBE_SECONDS)
        return _read_answer(json.loads(output), path, source)
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as exc:
        return Library(path, source, error=f"the probe failed: {exc}")


def _read_answer(answer: object, path: str, source: str) -> Library:
    """Check the child's answer, which an incompatible library may have garbled."""
    if not isinstance(answer, dict):
        raise ValueError(f"not an answer: {answer!r:.80}")
    if "error" in answer:
        return Library(path, source, error=str(answer["error"])[:500])
    version = tuple(int(number) for number in answer["version"][:2])
    domains = tuple(
        Domain(*(str(part)[:80] for part in parts[:3])) for parts in answer["domains"][:NAMES_LIMIT]
    )
    return Library(str(answer["path"]), source, version, domains)


@functools.cache
def _log_once(choice: Choice) -> None:
    kind = choice.kind.name if choice.kind else ""
    level = logging.INFO if choice.library else logging.WARNING
    logger.log(level, "%s: %s", f"{kind} of {choice.library}" if kind else "No libfabric",
               choice.reason)  # fmt: skip
    for library, reason in choice.refused:
        logger.log(level, "Not taken: %s: %s", library, reason)
