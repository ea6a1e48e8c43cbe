"""MUNGE: credentials of this process's user, made and decoded by the daemon munged of this host.

Theory of operation
-------------------
munged knows by the kernel who asks for a credential, and signs it with a key that all hosts of a
site have. The munged of another host says who made it. Here a credential is for processes of the
same user only, and munged refuses to decode it for others.

libmunge is loaded when it is needed first. Its functions wait for the daemon, so they run in
threads, and never in an event loop. They have time limits of their own (ten seconds in release
0.5.15), so a thread is never lost. Callers wait less than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import pwd
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeoutError
from typing import Any, NamedTuple, NoReturn

from dask_fabric.config import Settings
from dask_fabric.errors import ConfigError, RefusedError, UnavailableError
from dask_fabric.wire.authentication import CREDENTIAL_BYTES_LIMIT, Munge, Work

LIBRARY = "libmunge.so.2"
TTL_SECONDS = 60  # a credential is valid for so long, and clocks may differ by as much
_PATIENCE_SECONDS = 5.0  # less than Dask gives the first attempt to connect
_PAUSE_SECONDS = 1.0  # for so long nobody asks a daemon that did not answer
_THREAD_COUNT = 4
_CHALLENGE_BYTES = 32

# munge.h: options of a context, and errors.
_OPT_TTL, _OPT_ENCODE_TIME, _OPT_DECODE_TIME, _OPT_SOCKET, _OPT_UID_RESTRICTION = 4, 6, 7, 8, 9
_SUCCESS = 0
_BAD_CRED, _CRED_INVALID, _CRED_EXPIRED, _CRED_REWOUND, _CRED_REPLAYED, _CRED_UNAUTHORIZED = (
    *(8, 14, 15, 16, 17),
    18,
)
_OF_CREDENTIAL = range(_BAD_CRED, _CRED_UNAUTHORIZED + 1)  # the others are of the daemon
_MEANINGS = {
    _CRED_INVALID: "munged of both hosts needs the same MUNGE key, /etc/munge/munge.key",
    _CRED_REPLAYED: "it was used before, so somebody repeats what others send",
    _CRED_UNAUTHORIZED: "it is of another user, and both sides must be processes of one user",
}
_ADVICE = "`systemctl status munge` on its host says more"


class _Decoded(NamedTuple):
    """What munged says of a credential.

    Attributes
    ----------
    ahead_seconds : int
        By how much the clock of the host of its maker is ahead, if it was just made.
    """

    code: int
    reason: str
    payload: bytes
    user: int
    ahead_seconds: int


class Munged:
    """The daemon of this host: see `dask_fabric.wire.authentication.Daemon`.

    Parameters
    ----------
    socket : str or None
        Full path of its socket; None for libmunge's own default.

    Attributes
    ----------
    user : int or None
        Who this process is, by the word of munged, once it was asked. In a container this may be
        another number than the process itself sees.
    """

    def __init__(self, socket: str | None) -> None:
        self._socket = socket
        self.user: int | None = None
        self._silent_until = 0.0

    def probe(self) -> int:
        """Give the user of this process, by the word of munged.

        Raises
        ------
        UnavailableError
            There is no libmunge, or munged does not answer, or fails.
        """
        if self.user is None:
            payload = os.urandom(_CHALLENGE_BYTES)
            found = self._decode(self._encode(payload, None))
            if found.code != _SUCCESS or found.payload != payload:
                raise UnavailableError(
                    f"munged cannot decode its own credential ({found.reason}): {_ADVICE}"
                )
            self.user = found.user
        return self.user

    def encode(self, payload: bytes) -> bytes:
        """Make a credential of this process, which only its own user can decode.

        Raises
        ------
        UnavailableError
            There is no libmunge, or munged does not answer, or fails.
        """
        return self._encode(payload, self.probe())

    def decode(self, credential: bytes, side: str) -> bytes:
        """Give the payload of a credential of a process of the same user.

        Parameters
        ----------
        credential : bytes
            Without a zero byte.
        side : str
            Who has sent it, for the error.

        Raises
        ------
        RefusedError
            It is not valid here, or of another user.
        UnavailableError
            There is no libmunge, or munged does not answer, or fails.
        """
        own = self.probe()
        found = self._decode(credential)
        if found.code in _OF_CREDENTIAL:
            _refuse(found, side)
        if found.code != _SUCCESS:
            raise UnavailableError(f"munged fails ({found.reason}): {_ADVICE}")
        if found.user != own:
            other = "server" if side == "client" else "client"
            raise RefusedError(
                f"the {side} is a process of user {name_of(found.user)}, and the {other} of user "
                f"{name_of(own)}: with MUNGE both sides must be processes of one user"
            )
        return found.payload

    async def elsewhere(self, work: Work) -> Work:
        """Do work in a thread; give a function that returns its result, or raises its error."""
        if time.monotonic() < self._silent_until:
            return _no_answer
        future = asyncio.get_running_loop().run_in_executor(_threads(), work)
        future.add_done_callback(_look_at)
        done, _ = await asyncio.wait((future,), timeout=_PATIENCE_SECONDS)
        if done:
            return future.result
        future.cancel()  # if it has not begun; else libmunge ends it
        self._silent_until = time.monotonic() + _PAUSE_SECONDS
        return _no_answer

    # ---- calls of libmunge

    def _encode(self, payload: bytes, user: int | None) -> bytes:
        library = _library()
        credential = ctypes.c_void_p()
        with self._context(library) as context:
            library.munge_ctx_set(context, _OPT_TTL, ctypes.c_int(TTL_SECONDS))
            if user is not None:
                library.munge_ctx_set(context, _OPT_UID_RESTRICTION, ctypes.c_uint(user))
            code = library.munge_encode(ctypes.byref(credential), context, payload, len(payload))
            if code != _SUCCESS:
                reason = _reason(library, context, code)
                raise UnavailableError(f"munged makes no credential ({reason}): {_ADVICE}")
        try:
            return ctypes.string_at(credential.value or 0)
        finally:
            library.free(credential)

    def _decode(self, credential: bytes) -> _Decoded:
        library = _library()
        payload, length = ctypes.c_void_p(), ctypes.c_int()
        user, group = ctypes.c_uint(), ctypes.c_uint()
        with self._context(library) as context:
            out = map(ctypes.byref, (payload, length, user, group))
            code = library.munge_decode(credential, context, *out)
            try:
                nbytes = min(max(length.value, 0), CREDENTIAL_BYTES_LIMIT)
                content = ctypes.string_at(payload.value, nbytes) if payload.value else b""
            finally:
                library.free(payload)
            reason = _reason(library, context, code)
            made, decoded = (
                _time(library, context, option) for option in (_OPT_ENCODE_TIME, _OPT_DECODE_TIME)
            )
        return _Decoded(code, reason, content, user.value, made - decoded)

    @contextlib.contextmanager
    def _context(self, library: Any) -> Iterator[int]:
        context = library.munge_ctx_create()
        if not context:
            raise UnavailableError("libmunge has no memory")
        try:
            if self._socket is not None:
                socket = ctypes.c_char_p(os.fsencode(self._socket))
                library.munge_ctx_set(context, _OPT_SOCKET, socket)
            yield context
        finally:
            library.munge_ctx_destroy(context)


def _refuse(found: _Decoded, side: str) -> NoReturn:
    """Refuse a credential that munged does not accept."""
    meaning = _MEANINGS.get(found.code, "")
    if found.code in (_CRED_EXPIRED, _CRED_REWOUND):
        order = "behind" if found.ahead_seconds < 0 else "ahead of"
        meaning = (
            f"the clock of the {side}'s host is {abs(found.ahead_seconds)} s {order} the other, "
            f"and at most {TTL_SECONDS} s are allowed: set both by NTP"
        )
    other = "server" if side == "client" else "client"
    text = f"munged of the {other} does not accept the credential of the {side} ({found.reason})"
    raise RefusedError(f"{text}: {meaning}" if meaning else text)


def _no_answer() -> NoReturn:
    raise UnavailableError(f"munged did not answer within {_PATIENCE_SECONDS:g} s: {_ADVICE}")


def _look_at(future: asyncio.Future) -> None:
    """Look at the error of work that nobody waits for any more: else asyncio logs it."""
    if not future.cancelled():
        future.exception()


def _reason(library: Any, context: int, code: int) -> str:
    said = library.munge_ctx_strerror(context) or library.munge_strerror(code) or b""
    return said.decode(errors="replace").strip() or f"error {code}"


def _time(library: Any, context: int, option: int) -> int:
    seconds = ctypes.c_long()  # a time_t
    library.munge_ctx_get(context, option, ctypes.byref(seconds))
    return seconds.value


def name_of(user: int) -> str:
    """Give the name and the number of a user."""
    try:
        return f"{pwd.getpwuid(user).pw_name} ({user})"
    except KeyError:
        return str(user)


@functools.cache
def _library() -> Any:
    try:
        library: Any = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise UnavailableError(
            f"{LIBRARY} cannot be loaded ({error}): it comes with MUNGE (Debian's package "
            "libmunge2, munge-libs elsewhere)"
        ) from error
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("munge_ctx_create", pointer, ()),
        ("munge_ctx_destroy", None, (pointer,)),
        ("munge_ctx_set", number, (pointer, number)),  # and a value
        ("munge_ctx_get", number, (pointer, number)),  # and a pointer
        ("munge_ctx_strerror", text, (pointer,)),
        ("munge_strerror", text, (number,)),
        ("munge_encode", number, (pointer, pointer, text, number)),
        ("munge_decode", number, (text, pointer, pointer, pointer, pointer, pointer)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    # Of the allocator that libmunge uses: such as jemalloc, if LD_PRELOAD names it.
    library.free = ctypes.CDLL(None).free
    library.free.restype, library.free.argtypes = None, (pointer,)
    return library


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREAD_COUNT, "dask-fabric munge")


os.register_at_fork(after_in_child=_threads.cache_clear)  # threads do not survive a fork


# ---- for the process


def method(settings: Settings) -> Munge:
    """Give the method of authentication of a process that uses MUNGE."""
    return _method(_socket(settings), os.geteuid())


def _socket(settings: Settings) -> str | None:
    """Give the path of munged's socket; None for libmunge's own default."""
    named = settings.auth_munge_socket or os.environ.get("MUNGE_SOCKET")
    return os.path.expanduser(named) if named else None


@functools.lru_cache(maxsize=8)  # each knows the user of its process
def _munged(socket: str | None, user: int) -> Munged:
    return Munged(socket)


@functools.lru_cache(maxsize=8)
def _method(socket: str | None, user: int) -> Munge:
    munged = _munged(socket, user)
    return Munge(munged, munged.elsewhere)


async def prepare(settings: Settings) -> None:
    """Ask munged once, so that a process without it fails at once, and with the reason.

    Raises
    ------
    ConfigError
        There is no libmunge, or munged does not answer, or fails.
    """
    munged = _munged(_socket(settings), os.geteuid())
    if munged.user is None:
        outcome = await munged.elsewhere(munged.probe)
        _succeed(outcome)


def user(settings: Settings) -> int:
    """Give who this process is by the word of munged; waits for it, but not long.

    Raises
    ------
    ConfigError
        There is no libmunge, or munged does not answer, or fails.
    """
    future = _threads().submit(_munged(_socket(settings), os.geteuid()).probe)
    try:
        future.exception(_PATIENCE_SECONDS)
    except FuturesTimeoutError:
        _succeed(_no_answer)
    return _succeed(future.result)


def _succeed(outcome: Work) -> Any:
    try:
        return outcome()
    except UnavailableError as error:
        raise ConfigError(f"fabric.auth.method is munge, and {error}") from error


def forget() -> None:
    """Ask munged anew, as a new process does."""
    _munged.cache_clear()
    _method.cache_clear()
