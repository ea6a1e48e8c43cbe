"""The UCX libraries of this host, for the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dask_fabric.errors import UnavailableError
from dask_fabric.paths.ucx import candidates as ucx_candidates
from dask_fabric.paths.ucx import library as ucx_library
from dask_fabric.paths.ucx.candidates import CUDA, ROCM, VERBS


@dataclass(frozen=True)
class Library:
    """One UCX that was found; `refusal` is empty for the chosen one."""

    path: str
    source: str
    version: str | None
    transports: tuple[str, ...]
    has_rdma: bool
    has_gpu: bool
    refusal: str


@dataclass(frozen=True)
class Ucx:
    """The libraries that were found, the chosen one, and the reasons.

    Attributes
    ----------
    wanted : bool
        Whether processes here look for UCX at all.
    why_wanted : str
        The reason for that.
    chosen : Library or None
        The library that is used.
    reason : str
        Why it is used, or why none is.
    others : tuple of Library
        The libraries that are not used.
    """

    wanted: bool = False
    why_wanted: str = "unknown"
    chosen: Library | None = None
    reason: str = "unknown"
    others: tuple[Library, ...] = ()


def inspect_ucx(settings: Any) -> Ucx:
    """Probe every library, each in a process of its own, and choose one."""
    host = ucx_candidates.look()
    wanted, why_wanted = ucx_candidates.is_wanted(settings.enabled, host)
    try:
        choice = ucx_library.choose(settings.library, settings.options, host, survey=True)
    except UnavailableError as exc:
        return Ucx(wanted, why_wanted, None, str(exc))
    return Ucx(
        wanted=wanted,
        why_wanted=why_wanted,
        chosen=_library(choice.library) if choice.library else None,
        reason=choice.reason,
        others=tuple(_library(library, refusal) for library, refusal in choice.refused),
    )


def _library(found: ucx_library.Library, refusal: str = "") -> Library:
    return Library(
        path=found.path,
        source=found.source,
        version=".".join(map(str, found.version)) or None,
        transports=found.transports,
        has_rdma=found.has(VERBS),
        has_gpu=found.has(CUDA + ROCM),
        refusal=refusal,
    )
