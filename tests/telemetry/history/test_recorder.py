"""The writing thread: its errors do not reach its callers."""

from __future__ import annotations

import threading
import time

from dask_fabric.telemetry.history.file import Writer, read
from dask_fabric.telemetry.history.job import Job
from dask_fabric.telemetry.history.recorder import Recorder


def recorder(writer) -> Recorder:
    return Recorder(writer, "a", Job("fabric://h:1", 1.0))


class Hanging(Writer):
    """A file system that does not answer."""

    def __init__(self) -> None:
        super().__init__("/nowhere", 0)
        self.entered, self.released = threading.Event(), threading.Event()
        self.write_count = 0

    def write(self, record) -> None:
        self.entered.set()
        self.released.wait(20)
        self.write_count += 1


def hung() -> tuple[Hanging, Recorder]:
    """A recorder that waits for a file system which does not answer, and its writer."""
    writer = Hanging()
    one = recorder(writer)
    one.sample([])
    assert writer.entered.wait(10)
    return writer, one


def test_a_job_is_written_while_it_runs_and_at_its_end(tmp_path):
    path = tmp_path / "history.sqlite"
    one = recorder(Writer(path, 1 << 20))
    one.sample([])
    one.finish(10)
    ((record,), damaged) = read(path)
    assert damaged == [] and record.job_id == "a"
    assert record.started <= record.ended <= record.seen <= time.time()


def test_an_error_is_logged_once(tmp_path, caplog):
    one = recorder(Writer(tmp_path / "none" / "x", 1 << 20))
    for _ in range(5):
        one.sample([])
    one.finish(10)
    assert caplog.text.count("Cannot write the history") == 1
    assert "no such folder" in caplog.text


def test_it_writes_again_after_more_news_than_it_takes():
    """Workers come and go by thousands while the file system hangs."""
    writer, one = hung()
    for _ in range(10_000):
        one.take([])
    for _ in range(10):
        one.sample([])
    writer.released.set()
    give_up = time.monotonic() + 10
    while writer.write_count < 2:
        assert time.monotonic() < give_up
        one.sample([])
        time.sleep(0.001)
    one.finish(10)


def test_a_file_system_that_hangs_keeps_nobody(caplog):
    writer, one = hung()
    for _ in range(10_000):
        one.take([])
        one.sample([])
    one.finish(0.01)
    assert "not in the history" in caplog.text
    writer.released.set()
    one.finish(10)  # the first found no room
    assert not one._thread.is_alive()
    assert writer.write_count <= 4
