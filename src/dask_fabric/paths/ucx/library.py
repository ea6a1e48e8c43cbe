"""Choosing the UCX library for this process.

Candidates are probed in a fixed order, each in a child process. Nothing is loaded here.
``docs/ucx.md`` is the page for users.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dask_fabric.errors import UnavailableError
from dask_fabric.paths.places import Candidate
from dask_fabric.paths.probing import PROBE_SECONDS, output_of
from dask_fabric.paths.ucx.candidates import Host, candidates, look

logger = logging.getLogger(__name__)

PROGRAM = Path(__file__).with_name("probe.py")
OLDEST_VERSION = (1, 11)
NAMES_LIMIT = 4096
# HANDLE_ERRORS, DEBUG_SIGNO: loading UCX installs signal handlers otherwise. MM_ERROR_HANDLING:
# peer error handling would disable shared memory.
_DEFAULTS = {"HANDLE_ERRORS": "none", "DEBUG_SIGNO": "0", "MM_ERROR_HANDLING": "y"}
_GRACE_SINCE = (1, 21)  # since then each start takes 410 ms, but 20 ms with a short grace


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
        Three numbers; empty if it could not be loaded.
    transports : tuple of str
        Transport and device, such as ``rc_mlx5/mlx5_0:1``; only those with a device.
    memory_types : tuple of str
        Such as ``host`` and ``cuda``.
    error : str
        Why it cannot be used, or "".
    """

    path: str
    source: str
    version: tuple[int, ...] = ()
    transports: tuple[str, ...] = ()
    memory_types: tuple[str, ...] = ()
    error: str = ""

    def has(self, prefixes: tuple[str, ...]) -> bool:
        """Whether a transport or a memory type begins with one of *prefixes*."""
        return any(name.startswith(prefixes) for name in (*self.transports, *self.memory_types))

    def __str__(self) -> str:
        return f"UCX {'.'.join(map(str, self.version)) or '?'} at {self.path} ({self.source})"


@dataclass(frozen=True)
class Choice:
    """The library to use, or None, with the reason; and each refused one with its reason."""

    library: Library | None
    reason: str
    refused: tuple[tuple[Library, str], ...] = ()


def choose(
    explicit: str | None = None,
    options: Iterable[tuple[str, str]] = (),
    host: Host | None = None,
    survey: bool = False,
) -> Choice:
    """Find the UCX library to use in this process, and log it once.

    Parameters
    ----------
    explicit : str, optional
        ``fabric.ucx.library``; no other is tried then.
    options : iterable of (str, str)
        ``fabric.ucx.options``; they can change the transports that a library finds.
    host : Host, optional
        The result of :func:`look`, by default.
    survey : bool
        Whether to probe every candidate, for a report, instead of stopping at the best.

    Returns
    -------
    Choice

    Raises
    ------
    UnavailableError
        The explicit library does not work, or this process has loaded another one.
    """
    host = host or look()
    options = tuple(options)
    choice = _rank(_probed(candidates(explicit), options), host, survey)
    if explicit and choice.library is None:
        reason = choice.refused[0][1]
        raise UnavailableError(
            f"fabric.ucx.library is {explicit!r}, which cannot be used: {reason}"
        )
    _log_once(choice)
    return choice


# ---- the probe


def environment(
    options: Iterable[tuple[str, str]],
    version: tuple[int, ...] | None = None,
    defaults: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Give environment variables for UCX. Variables already set win, then the options.

    Parameters
    ----------
    options : iterable of (str, str)
        Names without ``UCX_``, and values.
    version : tuple of int, optional
        The version of the library, if known.
    defaults : mapping of str to str, optional
        Further defaults, named like *options*, which win.

    Returns
    -------
    dict
        Only variables that are not set yet.
    """
    own = dict(options)
    values = {**_DEFAULTS, **(defaults or {})}
    if version is None or version >= _GRACE_SINCE:
        values["MEM_BISTRO_GRACE_DURATION"] = "1ms"
    if version is None or not own:  # else keep UCX's warning about misspelt options
        values["WARN_UNUSED_ENV_VARS"] = "n"
    named = {f"UCX_{name}": value for name, value in {**values, **own}.items()}
    return {name: value for name, value in named.items() if name not in os.environ}


def _probed(places: Iterable[Candidate], options: tuple[tuple[str, str], ...]) -> Iterator[Library]:
    for place in places:
        path, source = place.path, place.source
        yield probe(path, source, tuple(sorted(environment(options).items())))


@functools.cache
def probe(path: str, source: str, variables: tuple[tuple[str, str], ...] = ()) -> Library:
    """Probe the library *path* in a child process; errors are returned in the result.

    Parameters
    ----------
    path : str
        A file, or the soname.
    source : str
        The candidate's source.
    variables : tuple of (str, str)
        For the child's environment.

    Returns
    -------
    Library
    """
    try:
        output = _run_probe(path, {**os.environ, **dict(variables)})
        return _read_answer(json.loads(output), path, source)
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as exc:
        return Library(path, source, error=f"the probe failed: {exc}")


def _run_probe(path: str, variables: Mapping[str, str]) -> bytes:
    return output_of(PROGRAM, (path,), variables, PROBE_SECONDS)


def _read_answer(answer: object, path: str, source: str) -> Library:
    """Check the child's answer, which an incompatible library may have garbled."""
    if not isinstance(answer, dict):
        raise ValueError(f"not an answer: {answer!r:.80}")
    if "error" in answer:
        return Library(path, source, error=str(answer["error"])[:500])
    version = tuple(int(number) for number in answer["version"][:3])
    transports, memory_types = (
        tuple(str(name)[:80] for name in answer[key][:NAMES_LIMIT])
        for key in ("transports", "memory_types")
    )
    found, oldest = (".".join(map(str, parts)) for parts in (version, OLDEST_VERSION))
    error = "" if version >= OLDEST_VERSION else f"UCX {found} is older than {oldest}"
    return Library(str(answer["path"]), source, version, transports, memory_types, error)


# ---- the choice


def _rank(libraries: Iterable[Library], host: Host, survey: bool) -> Choice:
    """Choose the first of the libraries that meet the most important needs of the host."""
    usable: dict[str, Library] = {}
    refused = []
    for library in libraries:
        if library.error:
            refused.append((library, library.error))
        elif library.path in usable:
            refused.append((library, f"the same as {usable[library.path].source}"))
        else:
            usable[library.path] = library
            if not survey and all(_fulfils(library, host)):
                break
    if not usable:
        return Choice(None, "no working UCX library was found", tuple(refused))
    best = max(usable.values(), key=lambda library: _fulfils(library, host))
    for library in usable.values():
        if library is not best:
            refused.append((library, _why_not(library, best, host)))
    return Choice(best, _why(best, host), tuple(refused))


def _fulfils(library: Library, host: Host) -> tuple[bool, ...]:
    return tuple(library.has(prefixes) for _, prefixes in host.needs)


def _missing(library: Library, host: Host) -> list[str]:
    return [name for name, prefixes in host.needs if not library.has(prefixes)]


def _why(library: Library, host: Host) -> str:
    missing = _missing(library, host)
    if missing:
        return f"the best one found, but without {' and '.join(missing)}"
    if host.needs:
        return f"the first with {' and '.join(name for name, _ in host.needs)}"
    return "the first that works"


def _why_not(library: Library, best: Library, host: Host) -> str:
    missing = [name for name in _missing(library, host) if name not in _missing(best, host)]
    if missing:
        return f"it has no {' and '.join(missing)}"
    return f"{best.source} comes first"


@functools.cache
def _log_once(choice: Choice) -> None:
    level = logging.INFO if choice.library else logging.WARNING
    logger.log(level, "%s: %s", choice.library or "No UCX", choice.reason)
    for library, reason in choice.refused:
        logger.log(level, "Not taken: %s: %s", library, reason)
