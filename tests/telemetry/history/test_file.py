"""The file: what is written is read, several write, it stays small, and no other is touched."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

import pytest
from tests.telemetry.history.records import START, record

from dask_fabric.errors import HistoryError
from dask_fabric.telemetry.history import file as history
from dask_fabric.telemetry.history.file import VERSION, Writer, read

SIZE_BYTES = 16 << 20
WRITES = """
import itertools, sys
from dask_fabric.telemetry.history import file
from tests.telemetry.history.records import record
path, name, count, file_system = sys.argv[1:]
file.file_system_of = lambda path: file_system
writer = file.Writer(path, 16 << 20)
for i in range(int(count)) if int(count) else itertools.count():
    writer.write(record(f"{name}{i}", seen=1.7e9 + i))
    print(i, flush=True)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.sqlite"


@pytest.fixture
def local(monkeypatch):
    """Whatever the tests' own file system is, it is one where WAL works."""
    monkeypatch.setattr(history, "file_system_of", lambda path: "ext4")


def journal_mode(path) -> str:
    with sqlite3.connect(path) as connection:
        ((mode,),) = connection.execute("PRAGMA journal_mode").fetchall()
    connection.close()
    return mode


def write_elsewhere(path, name: str, count: int, file_system: str = "ext4") -> subprocess.Popen:
    command = [sys.executable, "-c", WRITES, str(path), name, str(count), file_system]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def ids(path) -> list[str]:
    records, damaged = read(path)
    assert damaged == []
    return [one.job_id for one in records]


# ---- what is written is read


def test_a_job_is_replaced_by_its_later_self(path, local):
    writer = Writer(path, SIZE_BYTES)
    writer.write(record("a"))
    writer.write(record("b"))
    writer.write(record("a", ended=START + 20))
    records, damaged = read(path)
    assert damaged == []
    assert [(one.number, one.job_id, one.ended) for one in records] == [
        (1, "a", START + 20),
        (2, "b", None),
    ]
    assert records[0] == dataclasses.replace(record("a", ended=START + 20), number=1)
    assert journal_mode(path) == "wal"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("ended", "seconds_later", "state"),
    [
        (START + 20, 1e6, "ended"),
        (None, 29, "running"),
        (None, 31, "lost"),
        (None, -3600, "running"),  # the clock was set back
        (None, -1e6, "lost"),
    ],
)
def test_a_job_without_an_end_is_lost_after_a_while(ended, seconds_later, state):
    assert record(ended=ended).state(START + 10 + seconds_later) == state


def test_a_long_interval_gives_a_job_longer():
    slow = dataclasses.replace(record().summary, interval_seconds=60.0)
    one = dataclasses.replace(record(), summary=slow)
    assert one.state(one.seen + 299) == "running"
    assert one.state(one.seen + 301) == "lost"


# ---- several writers, killed writers


@pytest.mark.parametrize("file_system", ["ext4", "nfs4"])
def test_several_writers_at_once(path, file_system):
    processes = [write_elsewhere(path, name, 40, file_system) for name in "abc"]
    for process in processes:
        process.communicate(timeout=25)
        assert process.returncode == 0
    assert sorted(ids(path)) == sorted(f"{name}{i}" for name in "abc" for i in range(40))


def test_several_writers_of_one_process(path, local):
    def write(name: str) -> None:
        for i in range(20):
            Writer(path, SIZE_BYTES).write(record(f"{name}{i}"))

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids(path)) == 60


@pytest.mark.parametrize("file_system", ["ext4", "nfs4"])
def test_a_killed_writer_leaves_a_file_that_others_use(path, file_system):
    written = 0
    for turn in range(3):
        with write_elsewhere(path, f"turn{turn}-", 0, file_system) as process:
            for _ in range(10 + turn):
                assert process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        written += 10 + turn
        assert len(ids(path)) >= written
    Writer(path, SIZE_BYTES).write(record("after"))
    assert "after" in ids(path)


# ---- file systems


def test_where_wal_does_not_work_another_journal_is_used_and_told(path, monkeypatch, caplog):
    monkeypatch.setattr(history, "file_system_of", lambda path: "nfs4")
    writer = Writer(path, SIZE_BYTES)
    with caplog.at_level(logging.WARNING, "dask_fabric"):
        writer.write(record("a"))
        writer.write(record("b"))
    assert journal_mode(path) == "delete"
    assert caplog.text.count("write-ahead log does not work on nfs4") == 1


def test_a_file_that_was_moved_to_such_a_file_system(path, local, monkeypatch):
    Writer(path, SIZE_BYTES).write(record("a"))
    monkeypatch.setattr(history, "file_system_of", lambda path: "lustre")
    Writer(path, SIZE_BYTES).write(record("b"))
    assert journal_mode(path) == "delete"
    assert ids(path) == ["a", "b"]


def test_the_file_system_of_a_path():
    assert history.file_system_of(history.Path("/proc/self/x")) == "proc"


# ---- the bound


def test_the_oldest_are_dropped_and_the_file_stays_small(path, local):
    limit_bytes = 64 << 10
    writer = Writer(path, limit_bytes)
    for i in range(80):
        writer.write(record(f"job{i}", seen=START + i))
        writer.write(record("long", seen=START + i))
        assert path.stat().st_size <= limit_bytes + (16 << 10)
    records, _ = read(path)
    kept = [one.job_id for one in records]
    assert "long" in kept and "job79" in kept and "job0" not in kept
    assert 20 < len(kept) < 80
    assert max(one.number for one in records) == 81  # each has taken one number, and none twice


def test_a_lower_bound_shrinks_the_file(path, local):
    for i in range(100):
        Writer(path, SIZE_BYTES).write(record(f"job{i}", seen=START + i))
    before_bytes = path.stat().st_size
    Writer(path, 40 << 10).write(record("last", seen=START + 100))
    assert path.stat().st_size < before_bytes / 2
    assert ids(path)[-1] == "last"


def test_many_jobs_are_dropped_at_once(path, local, monkeypatch):
    """Other schedulers wait no longer than 5 s."""
    writer = Writer(path, SIZE_BYTES)
    writer.write(record("job0"))
    with sqlite3.connect(path) as connection:
        connection.executemany(
            f"INSERT INTO jobs (id, started, seen, summary)"
            f" SELECT ?, started, {START} + ?, summary FROM jobs WHERE number = 1",
            ((f"job{i}", i) for i in range(1, 10_000)),
        )
    connection.close()
    looks = []
    used_bytes = history._used_bytes
    monkeypatch.setattr(
        history, "_used_bytes", lambda connection: looks.append(1) or used_bytes(connection)
    )
    Writer(path, 1 << 20).write(record("last", seen=START + 10_000))
    assert len(looks) < 30
    kept = ids(path)
    assert kept == [f"job{i}" for i in range(10_000 - len(kept) + 1, 10_000)] + ["last"]
    assert (1 << 20) * 0.9 < path.stat().st_size <= 1 << 20


@pytest.mark.parametrize("seen", [f"{START + 1e9}", "'yesterday'"])
def test_a_time_that_no_clock_shows_keeps_no_job(path, local, seen):
    limit_bytes = 64 << 10
    writer = Writer(path, limit_bytes)
    writer.write(record("odd"))
    writer.write(record("good", seen=START))
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE jobs SET seen = {seen} WHERE id = 'odd'")
    connection.close()
    for i in range(80):
        writer.write(record(f"job{i}", seen=START + i))
        records, damaged = read(path)
        if len(records) + len(damaged) < i + 3:  # some were dropped, a few at once
            break
    found = [one.job_id for one in records]
    assert not damaged and "odd" not in found and "job5" in found


def test_of_too_many_jobs_the_newest_are_read(path, local, monkeypatch):
    for name in "abc":
        Writer(path, SIZE_BYTES).write(record(name))
    monkeypatch.setattr(history, "_READ", history._READ.replace("LIMIT 100000", "LIMIT 2"))
    assert ids(path) == ["b", "c"]


# ---- paths, rights and full disks


@pytest.mark.parametrize("name", ["a?b#c%20&mode=ro", "\u2603", os.fsdecode(b"\xff")])
def test_any_name_of_a_file(tmp_path, name):
    path = tmp_path / name
    Writer(path, SIZE_BYTES).write(record())
    assert ids(path) == ["a"]
    assert ids(f"/{path}") == ["a"]
    assert [os.fsencode(file) for file in os.listdir(tmp_path)] == [os.fsencode(name)]


READS = """
import os, sys
from dask_fabric.telemetry.history.file import read
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
print(len(read(sys.argv[1])[0]))
"""


@pytest.mark.parametrize("in_use", [False, True])
def test_who_may_not_write_reads(local, in_use):
    with tempfile.TemporaryDirectory() as folder:
        path = history.Path(folder) / "history.sqlite"
        Writer(path, SIZE_BYTES).write(record())
        with contextlib.closing(sqlite3.connect(path)) as connection:
            if in_use:  # by a log beside it
                connection.execute("UPDATE jobs SET ended = NULL")
                connection.commit()
            for file in path.parent.iterdir():
                file.chmod(0o444)
            path.parent.chmod(0o555)
            command = [sys.executable, "-c", READS, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
            path.parent.chmod(0o755)
    assert done.stdout == "1\n", done.stderr


def modes(path) -> dict[str, int]:
    return {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}


@contextlib.contextmanager
def in_use(path):
    """A log stands beside the file while another process has it open."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE jobs SET ended = NULL")
        connection.commit()
        yield


@pytest.mark.parametrize("file_system", ["ext4", "nfs"])
def test_the_file_is_its_owners_alone(path, monkeypatch, file_system):
    monkeypatch.setattr(history, "file_system_of", lambda path: file_system)
    before = os.umask(0)
    try:
        Writer(path, SIZE_BYTES).write(record())
        with in_use(path):
            assert set(modes(path).values()) == {0o600}
            assert (len(modes(path)) == 3) == (file_system == "ext4")
    finally:
        os.umask(before)


def test_a_file_of_an_earlier_release_becomes_its_owners_alone(path, local):
    Writer(path, SIZE_BYTES).write(record())
    with in_use(path):
        for file in path.parent.iterdir():
            file.chmod(0o644)
        Writer(path, SIZE_BYTES).write(record())
        assert set(modes(path).values()) == {0o600} and len(modes(path)) == 3
    path.chmod(0o400)
    with contextlib.suppress(sqlite3.Error):
        Writer(path, SIZE_BYTES).write(record())
    assert modes(path)[path.name] == 0o400


def test_a_log_that_belongs_to_another_host_is_left_alone(path, local, monkeypatch):
    """What a scheduler writes on its own disk may be read on another host by NFS."""
    Writer(path, SIZE_BYTES).write(record())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE jobs SET ended = NULL")
        connection.commit()
        files = sorted(path.parent.iterdir())
        monkeypatch.setattr(history, "file_system_of", lambda path: "nfs4")
        with pytest.raises(HistoryError, match="only the host that writes it"):
            read(path)
        assert sorted(path.parent.iterdir()) == files
    assert ids(path) == ["a"]  # once it was closed
    assert journal_mode(path) == "wal"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB, in which nothing else is."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_keeps_what_was_written(small_disk):
    path = small_disk / "history.sqlite"
    writer = Writer(path, SIZE_BYTES)
    written = []
    with pytest.raises(sqlite3.OperationalError, match="full"):
        for i in range(1000):
            writer.write(record(f"job{i}"))
            written.append(f"job{i}")
    assert ids(path) == written
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    writer.write(record("later"))
    assert ids(path) == [*written, "later"]


# ---- other files


def other_database(path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE jobs (number INTEGER)")
    connection.close()


def newer_history(path) -> None:
    Writer(path, SIZE_BYTES).write(record())
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("x = 1\n" * 100), "is not a history of dask-fabric"),
        (lambda path: path.write_text("short"), "is not a history of dask-fabric"),
        (other_database, "is not a history of dask-fabric"),
        (newer_history, f"has version {VERSION + 1}.*as new as"),
    ],
)
def test_the_file_of_another_program_is_not_touched(path, make, message):
    make(path)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    for use in (lambda: Writer(path, SIZE_BYTES).write(record()), lambda: read(path)):
        with pytest.raises(HistoryError, match=message):
            use()
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_what_is_no_file(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path, fifo):
        with pytest.raises(HistoryError, match="is not a file"):
            Writer(path, SIZE_BYTES).write(record())
    with pytest.raises(HistoryError, match="no such folder"):
        Writer(tmp_path / "none" / "x", SIZE_BYTES).write(record())
    with pytest.raises(HistoryError, match="no history at"):
        read(tmp_path / "none.sqlite")


def test_a_damaged_file(path, local):
    Writer(path, SIZE_BYTES).write(record())
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xa5" * (len(content) - 100))
    for use in (lambda: Writer(path, SIZE_BYTES).write(record()), lambda: read(path)):
        with pytest.raises(HistoryError, match=r"is damaged \(.*\): move it away"):
            use()


@pytest.mark.parametrize(
    "change",
    [
        "summary = 'x'",
        "summary = x'00ff'",
        "summary = '[]'",
        "summary = replace(summary, '\"workers\":2', '\"workers\":-2')",
        'summary = replace(summary, \'"workers":2\', \'"workers":"2"\')',
        "summary = replace(summary, '\"bandwidth_max\":4000000.0', '\"bandwidth_max\":NaN')",
        'summary = replace(summary, \'"path":"cma"\', \'"path":[]\')',
        f"summary = '{'[' * 60000}'",
        "summary = hex(zeroblob(1000000))",
        "started = 'yesterday'",
        "seen = 1e300",
        "ended = x'00'",
    ],
)
def test_a_damaged_job_is_named_and_the_others_are_read(path, local, change):
    for name in "ab":
        Writer(path, SIZE_BYTES).write(record(name))
    with sqlite3.connect(path) as connection:
        assert connection.execute(f"UPDATE jobs SET {change} WHERE id = 'a'").rowcount == 1
    connection.close()
    records, damaged = read(path)
    assert [one.job_id for one in records] == ["b"]
    assert len(damaged) == 1 and damaged[0].startswith("job 1 is damaged: ")


def test_a_view_in_the_place_of_the_table(path, local):
    Writer(path, SIZE_BYTES).write(record())
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE jobs RENAME TO other")
        connection.execute("CREATE VIEW jobs AS SELECT * FROM other")
    connection.close()
    with pytest.raises(HistoryError, match="has no table 'jobs'"):
        read(path)


def test_a_file_that_somebody_locks_is_waited_for(path, local):
    Writer(path, SIZE_BYTES).write(record("a"))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, lambda: connection.execute("COMMIT"))
    began = time.monotonic()
    release.start()
    Writer(path, SIZE_BYTES).write(record("b"))
    assert time.monotonic() - began > 0.2
    release.join()
    connection.close()
    assert ids(path) == ["a", "b"]
