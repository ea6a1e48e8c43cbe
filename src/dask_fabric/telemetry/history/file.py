"""The SQLite file with the summaries of jobs.

Each write or read opens a connection of its own. So no lock is held in between, and a file that was
moved away is created again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
import struct
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dask_fabric.errors import HistoryError
from dask_fabric.telemetry.history.summary import TEXT_BYTES_LIMIT, Summary, from_text

logger = logging.getLogger(__name__)

APPLICATION_ID = 0x46414248  # "FABH", in the header of the file
VERSION = 1
_BUSY_SECONDS = 5.0
_MODE = 0o600
_LEAST_LOST_SECONDS = 30.0
_LOST_INTERVALS = 5
_CLOCK_SECONDS = 86400.0  # a time so far in the future is the error of a clock
_JOBS_READ_LIMIT = 100_000
_AUTOCHECKPOINT_PAGES = 64
# Local file systems, where SQLite's write-ahead log works: it needs memory shared by all users of
# the file. On others, and on unknown ones, it could corrupt the file.
_EXT = ("ext2", "ext3", "ext4")
_LOCAL_FILE_SYSTEMS = frozenset(
    (*_EXT, "bcachefs", "btrfs", "f2fs", "jfs", "overlay", "ramfs", "tmpfs", "xfs", "zfs")
)
_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\0"
_VERSIONS_OFFSET = 60
_WAL_OFFSET, _WAL = 18, b"\2"
_UNCHANGED = "mode=ro&immutable=1"  # reads without creating files beside it
_TABLE = """CREATE TABLE jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  started REAL NOT NULL,
  seen REAL NOT NULL,
  ended REAL,
  summary TEXT NOT NULL
)"""
# Two statements instead of an upsert, which would use up a number each time.
_INSERT = "INSERT INTO jobs (seen, ended, summary, started, id) VALUES (?, ?, ?, ?, ?)"
_UPDATE = "UPDATE jobs SET seen = ?, ended = ?, summary = ? WHERE id = ?"
_DROP = """DELETE FROM jobs WHERE number IN (SELECT number FROM jobs WHERE id != ?
  ORDER BY CASE WHEN seen > ? THEN 0 ELSE seen END, number LIMIT ?)"""
_READ = f"""SELECT number, id, started, seen, ended,
  CASE WHEN length(CAST(summary AS BLOB)) <= {TEXT_BYTES_LIMIT} THEN summary END
  FROM jobs ORDER BY number DESC LIMIT {_JOBS_READ_LIMIT}"""

# POSIX: a process that closes a file, as `_check_header` does, loses all its locks on it. So only
# one thread at a time uses the file.
_lock = threading.Lock()


@dataclass(frozen=True)
class Record:
    """One job in the file; times are seconds since 1970.

    Attributes
    ----------
    number : int
        Assigned by the file; 0 before the job is written.
    job_id : str
        The scheduler's own identifier.
    seen : float
        When it was last written.
    ended : float or None
        None until the scheduler has ended.
    """

    number: int
    job_id: str
    started: float
    seen: float
    ended: float | None
    summary: Summary

    def state(self, now: float) -> str:
        """Give ``ended``, ``running``, or ``lost``: without an end, and not written for long."""
        if self.ended is not None:
            return "ended"
        patience = max(_LEAST_LOST_SECONDS, _LOST_INTERVALS * self.summary.interval_seconds)
        return "running" if -_CLOCK_SECONDS < now - self.seen < patience else "lost"


class Writer:
    """Writes one job to a file repeatedly.

    Parameters
    ----------
    path : str or Path
    size_bytes_limit : int
        The limit on the file's size; beyond it, the least recently written jobs are dropped.
    """

    def __init__(self, path: str | Path, size_bytes_limit: int) -> None:
        self.path = Path(os.path.expanduser(path))
        self.size_bytes_limit = size_bytes_limit
        self._has_warned = False

    def write(self, record: Record) -> None:
        """Write the job of *record*, or replace it.

        Raises
        ------
        HistoryError
            The file is not a history, newer than this version, or damaged; it was not changed.
        OSError, sqlite3.Error
            It cannot be written now.
        """
        text = record.summary.as_text()
        changing = (record.seen, record.ended, text)
        with _lock, _naming_damage(self.path):
            header = _check_header(self.path)
            _keep_private(self.path)
            with contextlib.closing(self._connect()) as connection:
                if not header:  # atomically: others see an empty file, or a history
                    with _transaction(connection):
                        _create_or_check(connection, self.path)
                self._choose_journal(connection, _is_wal(header))
                with _transaction(connection):
                    _create_or_check(connection, self.path)
                    if not connection.execute(_UPDATE, (*changing, record.job_id)).rowcount:
                        row = (*changing, record.started, record.job_id)
                        connection.execute(_INSERT, row)
                    self._drop_oldest(connection, record)
                self._shrink(connection)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        connection.execute("PRAGMA trusted_schema = OFF")
        return connection

    def _choose_journal(self, connection: sqlite3.Connection, is_wal: bool) -> None:
        file_system = file_system_of(self.path)
        if file_system in _LOCAL_FILE_SYSTEMS:
            wanted, reason = "wal", "SQLite refuses its write-ahead log here"
        else:
            wanted, reason = "delete", f"SQLite's write-ahead log does not work on {file_system}"
            if is_wal:  # from another file system: open it without shared memory
                connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        # Fails while others write; then their mode stays.
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute(f"PRAGMA journal_mode = {wanted}").fetchall()
        ((mode,),) = connection.execute("PRAGMA journal_mode").fetchall()
        if mode == "wal":
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_AUTOCHECKPOINT_PAGES}").fetchall()
        elif not self._has_warned:
            self._has_warned = True
            logger.warning(
                "The history %s is written with a rollback journal (%s): several schedulers may "
                "share it only if file locks work between their hosts",
                self.path,
                reason,
            )

    def _drop_oldest(self, connection: sqlite3.Connection, but: Record) -> None:
        # Each iteration scans all jobs, so it drops about half of the excess.
        while (used_bytes := _used_bytes(connection)) > self.size_bytes_limit:
            ((count,),) = connection.execute("SELECT count(*) FROM jobs").fetchall()
            some = 1 + count * (used_bytes - self.size_bytes_limit) // used_bytes // 2
            dropped = connection.execute(_DROP, (but.job_id, but.seen + _CLOCK_SECONDS, some))
            if dropped.rowcount == 0:
                return

    def _shrink(self, connection: sqlite3.Connection) -> None:
        """Shrink the file if much of it is free; the next jobs use the rest."""
        free_bytes = _pragma(connection, "freelist_count") * _pragma(connection, "page_size")
        if free_bytes > self.size_bytes_limit // 4:
            with contextlib.suppress(sqlite3.OperationalError):  # in use by others; next time
                connection.execute("VACUUM")


def _keep_private(path: Path) -> None:
    """Let only the owner read the file and SQLite's files beside it, since it contains addresses.

    SQLite gives new files beside it the mode of the file.
    """
    if not path.exists():
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT, _MODE))
    for suffix in ("", "-wal", "-shm", "-journal"):
        beside = path.with_name(path.name + suffix)
        with contextlib.suppress(OSError):  # missing, or another user's
            mode = beside.stat().st_mode
            if stat.S_ISREG(mode) and stat.S_IMODE(mode) & ~_MODE:
                beside.chmod(_MODE)


def read(path: str | Path) -> tuple[list[Record], list[str]]:
    """Read all jobs.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    list of Record, list of str
        The jobs, oldest first, and an error for each that cannot be read.

    Raises
    ------
    HistoryError
        There is no such file, or it is damaged, foreign or newer.
    """
    path = Path(os.path.expanduser(path))
    try:
        with _lock, _naming_damage(path):
            header = _check_header(path)
            if not header:
                raise HistoryError(f"there is no history at {path} yet")
            rows = _read_rows(path, _is_wal(header))
    except (sqlite3.Error, OSError) as exc:
        raise HistoryError(f"cannot read the history {path}: {exc}") from exc
    records, damaged = [], []
    for row in reversed(rows):
        try:
            records.append(_record(*row))
        except ValueError as exc:
            damaged.append(f"job {row[0]!r} is damaged: {exc}"[:300])
    return records, damaged


def _read_rows(path: Path, is_wal: bool) -> list[tuple]:
    # With an empty authority, because a path may begin with two slashes.
    uri = f"file://{urllib.parse.quote(os.fsencode(path.absolute()))}?{_access(path, is_wal)}"
    with contextlib.closing(sqlite3.connect(uri, timeout=_BUSY_SECONDS, uri=True)) as connection:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA query_only = ON")
        connection.text_factory = lambda data: data.decode(errors="replace")
        kinds = connection.execute("SELECT type FROM sqlite_master WHERE name = 'jobs'").fetchall()
        if kinds != [("table",)]:
            raise HistoryError(f"{path} is damaged: it has no table 'jobs'")
        return connection.execute(_READ).fetchall()


def _access(path: Path, is_wal: bool) -> str:
    """Give URI parameters to open the file for reading here, without harm to a writer."""
    has_log = path.with_name(f"{path.name}-wal").exists()
    if is_wal and file_system_of(path) not in _LOCAL_FILE_SYSTEMS:
        if has_log:
            raise HistoryError(
                f"{path} has a write-ahead log, which only the host that writes it can read"
            )
        return _UNCHANGED
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return "mode=rw"  # so that SQLite can clean up after a writer that was killed
    # Between two writes there is no log beside the file, and SQLite would have to create one.
    return "mode=ro" if has_log or not is_wal else _UNCHANGED


def _is_wal(header: bytes) -> bool:
    return header[_WAL_OFFSET:][:1] == _WAL


@contextlib.contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as exc:
        if type(exc) is not sqlite3.DatabaseError:
            raise
        raise HistoryError(
            f"the history {path} is damaged ({exc}): move it away, and a new one will be created"
        ) from exc


def _record(number: Any, job_id: Any, started: Any, seen: Any, ended: Any, text: Any) -> Record:
    times = (started, seen) if ended is None else (started, seen, ended)
    if not (
        isinstance(number, int)
        and isinstance(job_id, str)
        and all(isinstance(time, float) and 0 <= time < 1e11 for time in times)
        and isinstance(text, str)
    ):
        raise ValueError("its columns have unexpected values")
    return Record(number, job_id[:200], started, seen, ended, from_text(text))


def _check_header(path: Path) -> bytes:
    """Give the header, or b"" for a missing or empty file.

    A file that is not a history is refused before SQLite opens it.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise HistoryError(f"cannot keep a history in {path}: no such folder") from None
        return b""
    if not stat.S_ISREG(status.st_mode):
        raise HistoryError(f"{path} is not a file, and cannot be a history of dask-fabric")
    with open(path, "rb") as file:
        header = file.read(_HEADER_BYTES)
    if not header:
        return b""
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise _foreign(path)
    version, application_id = struct.unpack_from(">I4xI", header, _VERSIONS_OFFSET)
    _check_identity(path, application_id, version)
    return header


def _check_identity(path: Path, application_id: int, version: int) -> None:
    if application_id != APPLICATION_ID:
        raise _foreign(path)
    if version != VERSION:
        raise HistoryError(
            f"the history {path} has version {version}, but this dask-fabric supports version "
            f"{VERSION}: use a dask-fabric as new as the one that wrote it, or another file"
        )


def _foreign(path: Path) -> HistoryError:
    return HistoryError(f"{path} is not a history of dask-fabric; it was not changed")


def _create_or_check(connection: sqlite3.Connection, path: Path) -> None:
    """Create the table in a new file; if another process was first, check the file instead."""
    ((count,),) = connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    if count == 0:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute(_TABLE)
        return
    _check_identity(
        path, _pragma(connection, "application_id"), _pragma(connection, "user_version")
    )


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # after some errors SQLite has rolled back itself
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    ((value,),) = connection.execute(f"PRAGMA {name}").fetchall()
    return value


def _used_bytes(connection: sqlite3.Connection) -> int:
    page_count = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
    return page_count * _pragma(connection, "page_size")


def file_system_of(path: Path) -> str:
    """Give the type of the file system that *path* is on, such as ``ext4`` or ``nfs4``."""
    real = path.resolve()
    mounts = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    return next((mounts[one] for one in (real, *real.parents) if one in mounts), "unknown")
