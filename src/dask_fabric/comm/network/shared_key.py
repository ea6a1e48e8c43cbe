"""The keys of this process: from the configuration, or from a file that only its user may read.

A file of keys has one line for each, the current one first: 64 hexadecimal digits, and for a key
that is replaced the time until which it is accepted, in seconds since 1970. Lines that begin with
``#`` are comments.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import itertools
import logging
import math
import os
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from dask_fabric.config import Settings
from dask_fabric.errors import ConfigError
from dask_fabric.wire.authentication import KEY_BYTES, KEY_COUNT_LIMIT, Keys

logger = logging.getLogger(__name__)

DEFAULT_FILE = "~/.config/dask/fabric.key"
TIME_LIMIT = 250_000_000_000  # seconds since 1970: in the year 9892, which can be shown
_FILE_BYTES_LIMIT = 64 << 10
_ADVICE = "`dask fabric key create` makes one"
_RECHECK_SECONDS = 1.0
# Of a file system without hard links, such as some of object stores; see link(2).
_WITHOUT_LINKS = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS))
# What a look cannot be made without: it has found nothing then.
_OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
_HUNG_SECONDS = 1.0  # a look that takes longer has hung, with its thread
_SILENT_SECONDS = 10.0  # from then on that is worth a line in the log
_COMPLAINT_SECONDS = 600.0  # between two lines for the same reason
_QUICK_SECONDS = 0.01  # an event loop waits as long for one, which takes less on a local disk
_POLL_SECONDS = 0.001
_LOCK_SECONDS = 2.0


class _Answer(NamedTuple):
    """What `current` has returned, and returns again: every connection asks, several times."""

    settings: Settings | None
    keys: Keys | None
    until: float
    change_count: int  # of files, when it was asked


_last = _Answer(None, None, 0.0, 0)
_change_count = 0
# For these settings `is_recent` is true until then: every connection asks that, too.
_recent: tuple[Settings | None, float] = (None, 0.0)


class StoredKey(NamedTuple):
    """One line of a file of keys.

    Attributes
    ----------
    secret : bytes
    until : float or None
        When it ends, in seconds since 1970; None for the current key.
    """

    secret: bytes
    until: float | None


def default_file() -> Path | None:
    """Give the path of the file that is used if none is named; None without a home of our own."""
    return _file_of(os.environ.get("HOME"), os.geteuid())


@functools.lru_cache(maxsize=8)  # every connection asks, and a home may lie on a network
def _file_of(home: str | None, user: int) -> Path | None:
    try:
        path = Path(DEFAULT_FILE).expanduser()
        about = os.stat(Path.home())
    except RuntimeError:
        return None
    except OSError:
        return path
    # In some containers HOME is that of root, whatever the user.
    is_closed = about.st_uid != user and not os.access(Path.home(), os.X_OK)
    return None if is_closed else path


def file_of(settings: Settings) -> Path | None:
    """Give the path of the key file: the one that the configuration names, or the default."""
    named = settings.auth_key_file
    return _expanded(named, os.environ.get("HOME")) if named else default_file()


@functools.lru_cache(maxsize=8)
def _expanded(named: str, home: str | None) -> Path:
    return Path(named).expanduser()


def is_recent(settings: Settings) -> bool:
    """Whether `current` gives the keys of less than a second ago. If not, wait for `refresh`.

    A file that can be read quickly is looked at now.
    """
    global _recent
    known, until = _recent
    if known is settings and time.monotonic() < until:
        return True
    watched = _file_in_use(settings)
    if watched is not None and watched.is_due():
        watched.begin_look()
    _recent = settings, watched.recent_until() if watched else time.monotonic() + _RECHECK_SECONDS
    return watched is None or not watched.is_due()


async def refresh(settings: Settings) -> None:
    """Wait for a look at the file of keys, before a connection: the key may have been replaced.

    A home may lie on a network that hangs. Then this ends after a second, and the keys that are
    known stay in use.
    """
    watched = _file_in_use(settings)
    if watched is not None:
        watched.begin_look()
        await watched.look_ended()


async def has_changed(settings: Settings) -> bool:
    """Whether the file of keys has just changed: the other side may not have looked since then."""
    await refresh(settings)
    watched = _file_in_use(settings)
    return watched is not None and time.monotonic() < watched.changed_at + 2 * _RECHECK_SECONDS


def current(settings: Settings) -> Keys | None:
    """Give the keys of this process, or None if it has none and needs none.

    If the file is removed or cannot be used any more, processes that run keep the key.

    Raises
    ------
    ConfigError
        The file is missing, others may use it, or it has no valid key; or there is no key, and
        ``fabric.auth.require`` or ``fabric.auth.encrypt`` is true.
    """
    global _last
    last, now = _last, time.monotonic()
    if last.settings is settings and now < last.until and last.change_count == _change_count:
        return last.keys
    change_count = _change_count  # now: a look may end meanwhile
    keys = _found(settings)
    _last = _Answer(settings, keys, now + _RECHECK_SECONDS, change_count)
    return keys


def _file_in_use(settings: Settings) -> _WatchedFile | None:
    path = file_of(settings) if settings.auth_key is None else None
    return _watched(path) if path else None


def _found(settings: Settings) -> Keys | None:
    if settings.auth_key is not None:
        return _keys((settings.auth_key,))
    watched, named = _file_in_use(settings), settings.auth_key_file
    stored = watched.stored() if watched else None
    if stored is not None:
        now = time.time()
        return _keys(tuple(one.secret for one in stored if one.until is None or one.until > now))
    if named:
        raise ConfigError(f"fabric.auth.key-file is {named}, and there is no such file; {_ADVICE}")
    if settings.auth_require or settings.auth_encrypt:
        name = "require" if settings.auth_require else "encrypt"
        raise ConfigError(
            f"fabric.auth.{name} is true, and this process has no key: there is no "
            f"{DEFAULT_FILE}; {_ADVICE}"
        )
    return None


# The same object for the same keys, so that hellos with their fingerprints are cached.
@functools.lru_cache(maxsize=8)
def _keys(secrets: tuple[bytes, ...]) -> Keys:
    return Keys(secrets)


class _WatchedFile:
    """A file of keys as it was when it was looked at last: before each connection, unless that was
    less than a second ago.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None  # what the system said about the file
        self._stored: tuple[StoredKey, ...] | None = None
        self._error: ConfigError | None = None
        self._is_in_doubt = False  # the last look has failed
        self._complained_at: dict[str, float] = {}  # by reason
        self._looked_at = -math.inf  # when the last look ended
        self._began_at = -math.inf  # when the last look began
        self._numbers = itertools.count(1)  # of looks
        self._newest_number = 0  # of those that have ended
        self._thread: threading.Thread | None = None
        self._look()
        self.changed_at = -math.inf  # when a look has found other keys

    def stored(self) -> tuple[StoredKey, ...] | None:
        """Give its keys, or None if there is no such file.

        Raises
        ------
        ConfigError
            It cannot be used.
        """
        if self._error is not None:
            raise ConfigError(str(self._error))
        return self._stored

    def recent_until(self) -> float:
        """Give until when no connection needs to wait for another look."""
        return self._looked_at + _RECHECK_SECONDS

    def is_due(self) -> bool:
        """Whether a connection must wait for a look at it; not for one that has hung."""
        now = time.monotonic()
        if now < self.recent_until():
            return False
        if not self._is_under_way():
            return True
        if self._stored is not None and now > self._began_at + _SILENT_SECONDS:
            self._complain(f"the file system of the key file {self._path} does not answer")
        return now < self._began_at + _HUNG_SECONDS

    def begin_look(self) -> None:
        """Look at it in a thread of its own: one, whoever asks meanwhile, and however long."""
        # No lock: a forked child might find it taken. Two loops may begin a look each.
        if not self._is_under_way():
            self._began_at = time.monotonic()
            thread = threading.Thread(target=self._look, name="dask-fabric-key", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads can be had
                self._look()
            else:
                self._thread = thread
                thread.join(_QUICK_SECONDS)

    async def look_ended(self) -> None:
        """Wait until no look is under way, or it has hung."""
        while self._is_under_way() and time.monotonic() < self._began_at + _HUNG_SECONDS:
            await asyncio.sleep(_POLL_SECONDS)

    def _is_under_way(self) -> bool:
        return self._thread is not None and self._thread.is_alive()  # not in a forked child

    def _look(self) -> None:
        global _change_count
        number = next(self._numbers)
        stored, error, seen, is_certain = None, None, None, True
        try:
            # Not `os.stat`, which may be answered by what the network's file system remembers.
            with _opened(self._path) as (file, about):
                seen = about.st_mtime_ns, about.st_ino, about.st_size, about.st_mode, about.st_uid
                stored = self._stored if seen == self._seen else _read(self._path, file, about)
        except (FileNotFoundError, NotADirectoryError):
            is_certain = False
            if self._stored is not None:
                error = ConfigError(f"the key file {self._path} was removed")
            elif self._path.is_symlink():
                error = ConfigError(_leads_nowhere(self._path))
        except ConfigError as exc:
            # On a network it may be stale for a moment, when it was just replaced.
            error, is_certain = exc, not isinstance(exc.__cause__, OSError)
        finally:
            if number > self._newest_number:  # else a later look has ended before this one
                self._newest_number = number
                self._looked_at = time.monotonic()  # whatever happened: connections wait for it
        if number != self._newest_number:
            return
        cause = error and error.__cause__
        if isinstance(cause, OSError) and cause.errno in _OUT_OF_RESOURCES:
            if number == 1:  # no connection is refused for longer than that
                self._error, self._looked_at = error, -math.inf
            return
        if stored is None and self._stored is not None:
            # A process that has had a key never becomes one without: it keeps the last one.
            self._seen = None
            if is_certain or self._is_in_doubt:
                self._complain(str(error))
            self._is_in_doubt = True
            return
        before = self._stored, self._error
        self._stored, self._error, self._seen = stored, error, seen
        self._is_in_doubt = False
        if (stored, error) != before:
            self.changed_at = time.monotonic()
            _change_count += 1

    def _complain(self, reason: str) -> None:
        """Say now and then why the file is not used any more: a cluster that runs goes on."""
        now = time.monotonic()
        if now - self._complained_at.get(reason, -math.inf) > _COMPLAINT_SECONDS:
            self._complained_at[reason] = now
            logger.error("%s. Until that is mended, this process keeps the key that it has", reason)


_watched = functools.lru_cache(maxsize=8)(_WatchedFile)


def forget() -> None:
    """Look for the key anew, as a new process does."""
    global _last, _recent
    _last, _recent = _Answer(None, None, 0.0, 0), (None, 0.0)
    _watched.cache_clear()
    _file_of.cache_clear()
    _expanded.cache_clear()


def read(path: Path) -> tuple[StoredKey, ...]:
    """Read a file of keys.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ConfigError
        Others may read or write it, or it has no valid key.
    """
    try:
        with _opened(path) as (file, about):
            return _read(path, file, about)
    except FileNotFoundError:
        if path.is_symlink():
            raise ConfigError(_leads_nowhere(path)) from None
        raise
    except NotADirectoryError as error:
        raise ConfigError(_unreadable(path, error)) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], os.stat_result]]:
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb", opener=_open_without_waiting))
            about = os.fstat(file.fileno())
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            raise ConfigError(_unreadable(path, error)) from error
        yield file, about


def _unreadable(path: Path, error: OSError) -> str:
    return f"the key file {path} cannot be read ({error.strerror}): is it yours, and is HOME right?"


def _read(path: Path, file: IO[bytes], about: os.stat_result) -> tuple[StoredKey, ...]:
    if not stat.S_ISREG(about.st_mode):
        raise ConfigError(f"the key file {path} is not a regular file")
    if about.st_mode & 0o077:
        raise ConfigError(
            f"the key file {path} may be used by others (mode {about.st_mode & 0o777:o}), who "
            f"then have the key: `chmod 600 {path}`, and `dask fabric key rotate --keep 0`"
        )
    if about.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"the key file {path} belongs to another user ({about.st_uid})")
    try:
        content = file.read(_FILE_BYTES_LIMIT + 1)
    except OSError as error:
        raise ConfigError(_unreadable(path, error)) from error
    found = tuple(_parse(path, content))
    if not found or found[0].until is not None:
        raise ConfigError(f"the key file {path} has no current key: remove it; {_ADVICE}")
    return found


def _leads_nowhere(path: Path) -> str:
    # Who made the link wants a key: what it leads to may be on a disk that is not mounted here.
    return f"the key file {path} is a link to {os.readlink(path)}, and there is no such file"


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe has no writer


def _parse(path: Path, content: bytes) -> Iterator[StoredKey]:
    lines = content.decode("ascii", "replace").splitlines()
    lines = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
    if len(content) > _FILE_BYTES_LIMIT or len(lines) > KEY_COUNT_LIMIT:
        raise ConfigError(f"the key file {path} has more than {KEY_COUNT_LIMIT} keys")
    for number, line in enumerate(lines, 1):
        digits, *until = line.split()
        try:
            secret = bytes.fromhex(digits)
            (end,) = map(float, until) if until else (None,)
            if len(secret) != KEY_BYTES or not 0 <= (end or 0.0) < TIME_LIMIT:
                raise ValueError(digits)
        except ValueError:
            raise ConfigError(
                f"key {number} of the key file {path} is not {2 * KEY_BYTES} hexadecimal digits, "
                "with at most the time of its end behind it"
            ) from None  # without the line, which may be a key with a slip
        yield StoredKey(secret, end)


def write(path: Path, stored: tuple[StoredKey, ...], *, replace: bool) -> None:
    """Write a file of keys that only its owner may use, whole or not at all.

    Parameters
    ----------
    path : Path
    stored : tuple of StoredKey
    replace : bool
        Whether there may be such a file already.

    Raises
    ------
    FileExistsError
        There is one, and it may not be replaced.
    OSError
        It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
    # Of a link, the file is replaced that others find by it.
    path = path.resolve() if replace else path
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
    try:
        with open(descriptor, "w") as file:
            file.write(
                "# Keys of dask-fabric. Whoever has one can run code in all processes with it.\n"
            )
            for one in stored:
                end = "" if one.until is None else f" {one.until:.0f}"
                file.write(f"{one.secret.hex()}{end}\n")
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            _add(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _add(temporary: str, path: Path) -> None:
    """Give a file its name, unless there is such a file."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS:
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.replace(temporary, path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time change a file of keys, where its file system has locks.

    Whoever holds the lock for longer than two seconds is not waited for: anybody who may read the
    folder can.
    """
    deadline = time.monotonic() + _LOCK_SECONDS
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, RuntimeError):  # a loop of links is the second
            descriptor = os.open(path.resolve().parent, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            while not _lock(descriptor) and time.monotonic() < deadline:
                time.sleep(0.01)
        yield


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def rotated(stored: tuple[StoredKey, ...], secret: bytes, until: float) -> tuple[StoredKey, ...]:
    """Put a new key before the others, of which none is accepted after *until*."""
    now = time.time()
    ends = (until if one.until is None else min(one.until, until) for one in stored)
    older = (one._replace(until=end) for one, end in zip(stored, ends, strict=True) if end > now)
    return (StoredKey(secret, None), *tuple(older)[: KEY_COUNT_LIMIT - 1])
