"""The thread that sums up a job and writes it to the file, outside the scheduler's event loop."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from typing import Any, NamedTuple

from dask_fabric.telemetry.history.file import Record, Writer
from dask_fabric.telemetry.history.job import Job

logger = logging.getLogger(__name__)

_WAITING_LIMIT = 4096  # reports queued while the file system hangs


class _News(NamedTuple):
    sent: list[tuple[str, Any]]
    is_sample: bool
    at_seconds: float
    worker_count: int


class Recorder:
    """Records one job in the file.

    No method except `finish` waits for the file system. An error is logged once, until a write
    succeeds again.

    Parameters
    ----------
    writer : Writer
    job_id : str
    job : Job
    """

    def __init__(self, writer: Writer, job_id: str, job: Job) -> None:
        self._writer, self._job_id, self._job = writer, job_id, job
        self._started = time.time()
        self._sampled_seconds = time.monotonic()
        self._waiting: queue.Queue[_News | None] = queue.Queue(_WAITING_LIMIT)
        self._room = threading.Semaphore(2)  # for queued samples
        self._broken = False
        # A daemon: a file system that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="fabric-history", daemon=True)
        self._thread.start()

    def take(self, sent: list[tuple[str, Any]], worker_count: int = 0) -> None:
        """Add the reports of some workers; see `Job.take`."""
        self._put(_News(sent, False, time.monotonic(), worker_count))

    def sample(self, sent: list[tuple[str, Any]]) -> None:
        """Add the reports of all workers, and write the job."""
        if not self._room.acquire(blocking=False):
            return  # the thread is late; the next sample includes this one
        if not self._put(_News(sent, True, time.monotonic(), len(sent))):
            self._room.release()

    def finish(self, seconds: float) -> None:
        """Write the end of the job, and wait for that, at most about *seconds*."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=seconds)
        self._thread.join(seconds)
        if self._thread.is_alive():
            logger.error("The end of this job is not in the history %s yet", self._writer.path)

    def _put(self, news: _News) -> bool:
        try:
            self._waiting.put_nowait(news)
        except queue.Full:
            logger.debug("The queue for the history %s is full", self._writer.path)
            return False
        return True

    def _run(self) -> None:
        while (news := self._waiting.get()) is not None:
            self._attempt(self._take, news)
        self._attempt(self._write, time.time())

    def _take(self, news: _News) -> None:
        if not news.is_sample:
            self._job.take(news.sent, news.worker_count)
            return
        self._room.release()
        seconds = news.at_seconds - self._sampled_seconds
        self._sampled_seconds = news.at_seconds
        self._job.sample(news.sent, seconds)
        self._write(None)
        self._broken = False

    def _write(self, ended: float | None) -> None:
        summary = self._job.summary()
        self._writer.write(Record(0, self._job_id, self._started, time.time(), ended, summary))

    def _attempt(self, what: Any, argument: Any) -> None:
        try:
            what(argument)
        except Exception as exc:  # no error may stop the scheduler
            if not self._broken:
                self._broken = True
                logger.error("Cannot write the history %s: %s", self._writer.path, exc)
