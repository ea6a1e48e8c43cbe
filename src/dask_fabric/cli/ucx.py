"""The UCX libraries of this host, as the loader sees them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Library:
    """One UCX that was found; its problem is empty where it can be used."""

    path: str
    origin: str
    version: str | None
    transports: tuple[str, ...]
    has_rdma: bool
    has_gpu: bool
    problem: str


@dataclass(frozen=True)
class Ucx:
    """What was found, what was taken of it, and why.

    Attributes
    ----------
    supported : bool
        Whether this version of dask-fabric can use UCX at all.
    chosen : str or None
        The path of the library that is taken.
    reason : str
        Why it is taken, or why none is.
    """

    supported: bool = False
    libraries: tuple[Library, ...] = ()
    chosen: str | None = None
    reason: str = "unknown"

    @property
    def has_rdma(self) -> bool:
        """Whether the chosen library was built for RDMA devices."""
        return any(one.has_rdma for one in self.libraries if one.path == self.chosen)

    @property
    def has_gpu(self) -> bool:
        """Whether the chosen library was built for GPUs."""
        return any(one.has_gpu for one in self.libraries if one.path == self.chosen)


def inspect_ucx() -> Ucx:
    """Ask the loader, which probes in processes of its own."""
    return Ucx(reason="this version of dask-fabric has no UCX path")
