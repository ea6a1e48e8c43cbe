"""A scheduler plugin that records a summary of the job in the file ``fabric.history.file``.

The first fabric listener of a scheduler adds it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.scheduler import Scheduler, WorkerState
from tornado.ioloop import PeriodicCallback

from dask_fabric.config import Settings
from dask_fabric.telemetry.heartbeat import METRIC

if TYPE_CHECKING:
    from dask_fabric.telemetry.history.recorder import Recorder

logger = logging.getLogger(__name__)

_FINISH_SECONDS = 10.0


def watch(server: Any, settings: Settings) -> None:
    """If *server* is a scheduler and the history is enabled, add the plugin to it.

    Parameters
    ----------
    server : object
        The server that listens.
    settings : Settings
    """
    if settings.history_file is not None and isinstance(server, Scheduler):
        server.add_plugin(JobPlugin(settings), idempotent=True)


class JobPlugin(SchedulerPlugin):
    """Passes the reports in heartbeats to a `Recorder`, which does the work in its thread.

    Parameters
    ----------
    settings : Settings
    """

    name = "fabric-history"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers: dict[str, WorkerState] = {}
        self._recorder: Recorder | None = None

    async def start(self, scheduler: Scheduler) -> None:
        """Start recording, with a first write."""
        # Imported here: it loads SQLite, and every process imports this module.
        try:
            from dask_fabric.telemetry.history.file import Writer
        except ImportError as exc:
            logger.error("No history is recorded: this Python lacks SQLite (%s)", exc)
            return
        from dask_fabric.telemetry.history.job import Job
        from dask_fabric.telemetry.history.recorder import Recorder

        interval_seconds = self._settings.history_interval_seconds
        assert self._settings.history_file is not None  # checked in `watch`
        writer = Writer(self._settings.history_file, self._settings.history_size_bytes)
        recorder = Recorder(writer, scheduler.id, Job(scheduler.address, interval_seconds))
        self._recorder = recorder
        self._workers = dict(scheduler.workers)
        self._sample(recorder)
        self._timer = PeriodicCallback(lambda: self._sample(recorder), interval_seconds * 1000)
        self._timer.start()

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Record the initial figures of a new worker."""
        self._workers[worker] = state = scheduler.workers[worker]
        if self._recorder is not None:
            self._recorder.take([_report_of(state)], len(self._workers))

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Record the last figures of a worker that leaves."""
        state = self._workers.pop(worker, None)
        if state is not None and self._recorder is not None:
            self._recorder.take([_report_of(state)])

    async def close(self) -> None:
        """Write the end."""
        if self._recorder is not None:
            self._timer.stop()
            self._sample(self._recorder)
            recorder, self._recorder = self._recorder, None
            await asyncio.to_thread(recorder.finish, _FINISH_SECONDS)

    def _sample(self, recorder: Recorder) -> None:
        recorder.sample([_report_of(state) for state in self._workers.values()])


def _report_of(state: WorkerState) -> tuple[str, Any]:
    return state.address, state.metrics.get(METRIC)
