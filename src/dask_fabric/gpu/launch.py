"""Nannies of GPU workers; each gets the seat with the fewest workers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dask.config
from distributed import Nanny, Worker
from distributed.core import Status

from dask_fabric import config
from dask_fabric.errors import UnavailableError
from dask_fabric.gpu.allocator import CUPY, RMM, Pool
from dask_fabric.gpu.seats import Seat
from dask_fabric.gpu.worker import make_worker

RESOURCE = "GPU"
_ENDED = (Status.closing, Status.closed, Status.failed)
_CLOSE_SECONDS = 10


class Nannies:
    """Makes nannies; called in place of the class ``Nanny``.

    Parameters
    ----------
    seats : sequence of Seat
        At least one. With more workers than GPUs, some share one.
    pool : Pool
        The pool of each worker.
    worker_class : type
        The class of the workers.
    """

    def __init__(
        self, seats: Sequence[Seat], pool: Pool, worker_class: type[Worker] | None = None
    ) -> None:
        self.seats = tuple(seats)
        self.pool = pool
        self.worker_class = worker_class or Worker
        self._sitting: list[tuple[int, Nanny]] = []

    def __call__(
        self,
        scheduler_ip: Any = None,
        *,
        env: dict[str, Any] | None = None,
        resources: dict[str, float] | None = None,
        **options: Any,
    ) -> Nanny:
        number = self._next()
        seat = self.seats[number]
        nanny = Nanny(
            scheduler_ip,
            env={**(env or {}), **dict(seat.environment)},
            resources={RESOURCE: 1, **(resources or {})},
            worker_class=functools.partial(make_worker, self.worker_class, seat, self.pool),
            **options,
        )
        self._sitting.append((number, nanny))
        return nanny

    def _next(self) -> int:
        self._sitting = [one for one in self._sitting if one[1].status not in _ENDED]
        taken = [number for number, _ in self._sitting]
        return min(range(len(self.seats)), key=taken.count)


def pool_of(cupy_pool_size: str | float | None, rmm_pool_size: str | float | None) -> Pool:
    """Give the pool that one of two options specifies, or the configured one.

    Raises
    ------
    UnavailableError
        Both are given.
    dask_fabric.errors.ConfigError
        The size is invalid.
    """
    if cupy_pool_size is not None and rmm_pool_size is not None:
        raise UnavailableError("give either a pool of CuPy or one of RMM, not both")
    given: dict[str, Any] = {}
    for allocator, size in ((CUPY, cupy_pool_size), (RMM, rmm_pool_size)):
        if size is not None:
            given = {"fabric.gpu.allocator": allocator, "fabric.gpu.pool": size}
    with dask.config.set(given):
        return Pool.configured(config.load())


async def serve(open_nannies: Callable[[], Sequence[Nanny]]) -> None:
    """Run workers until they end; control-C and SIGTERM close them.

    Parameters
    ----------
    open_nannies : callable
        Makes the nannies; called in the running event loop.
    """
    nannies = open_nannies()
    with _signals() as signalled:
        work = asyncio.ensure_future(_until_finished(nannies))
        stop = asyncio.ensure_future(signalled.wait())
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if work.done():
            work.result()
            return
        await asyncio.gather(*(_close(nanny) for nanny in nannies))
        work.cancel()  # some may never have started


async def _until_finished(nannies: Sequence[Nanny]) -> None:
    await asyncio.gather(*nannies)
    await asyncio.gather(*(nanny.finished() for nanny in nannies))


async def _close(nanny: Nanny) -> None:
    await nanny.close(timeout=_CLOSE_SECONDS, reason="signal")


@contextlib.contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """Give an event that the first signal sets; a second signal has its usual effect."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    both = (signal.SIGINT, signal.SIGTERM)

    def remove() -> None:
        for number in both:
            loop.remove_signal_handler(number)

    def note() -> None:
        event.set()
        remove()

    for number in both:
        loop.add_signal_handler(number, note)
    try:
        yield event
    finally:
        remove()
