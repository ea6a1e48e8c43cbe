"""Substitutes for messages that the peer refuses: they deliver the error to the right place.

Dask does not handle an error of `Comm.write`. It drops a reply that fails, and the caller retries
for ever; a message stream ends at the first error. So the comm itself puts the error where the
value belongs: into the payload of a reply, into a task, or into an error reply.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from dask._task_spec import Task
from distributed.core import error_message
from distributed.protocol import pickle
from distributed.protocol.serialize import Serialize, Serialized, ToPickle, serialize

from dask_fabric.errors import MessageTooLargeError, UnavailableError

logger = logging.getLogger(__name__)

REFUSALS = (MessageTooLargeError, UnavailableError)
# The name that distributed's `get_data_from_worker` gives to a comm while it uses it.
_GATHERS = "Ephemeral Worker->Worker for gather"
_EVENT_OPS = ("log-event", "event")
# Messages of streams that list many keys, and can be split into several with fewer keys.
_KEYS_OPS = ("client-releases-keys", "client-desires-keys", "free-keys", "remove-replicas")
# Descriptions of tasks by users: nothing depends on them.
_DESCRIBING = ("annotations", "code", "metadata")
_NEEDED = ("who_has", "nbytes")
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0
_FORGET_SECONDS = 10.0
_PEER_LIMIT = 256
_KEY_LENGTH = 256  # shown of a task's key
_STARTS = {error.__name__: error for error in REFUSALS}


class Refused:
    """Stands for a graph, or for an actor's keyword arguments; the first use raises the error."""

    def __init__(self, kind: str, text: str) -> None:
        self._error = kind, text

    def __reduce__(self) -> tuple:
        return Refused, self._error

    def pop(self, key: str, default: Any) -> Any:
        """Give *default*, without raising the error.

        A worker pops a keyword of its own before it calls the method. An error there would not
        reach the caller.
        """
        return default

    def __getattr__(self, name: str) -> Any:
        raise_refusal(*self.__dict__["_error"])


def raise_refusal(kind: str, text: str) -> None:
    """Raise an error that another process reported."""
    raise _STARTS[kind](text)


def instead_of(
    message: Any, error: Exception, on_error: str, fits: Callable[[Any], bool]
) -> list | None:
    """Give messages to send in place of one that cannot be sent.

    Parameters
    ----------
    message : object
        The argument of `Comm.write`.
    error : MessageTooLargeError or UnavailableError
        Why it cannot be sent.
    on_error : {"message", "raise"}
        The argument of `Comm.write`; distributed passes "raise" for requests and streams.
    fits : callable
        ``(object) -> bool``: whether a message can be sent.

    Returns
    -------
    list or None
        None if *error* must be raised to the caller.
    """
    if type(message) is list and on_error == "raise":
        return _instead_of_stream(message, error, fits)
    if type(message) is dict and "op" in message:
        call = _instead_of_call(message, error)
        return [call] if call is not None and fits(call) else None
    if on_error != "message":
        return None
    for instead in _with_errors(message, error):
        if fits(instead):
            return [instead]
    return None


def _instead_of_stream(messages: list, error: Exception, fits: Callable) -> list | None:
    """Replace only those messages of a stream's batch that cannot be sent, found by bisection."""
    if len(messages) > 1:
        middle = len(messages) // 2
        return [messages[:middle], messages[middle:]]
    if not messages or type(messages[0]) is not dict:
        return None
    message = messages[0]
    if message.get("op") in _EVENT_OPS:
        return []
    keys = message.get("keys")
    if message.get("op") in _KEYS_OPS and isinstance(keys, (list, tuple, set)) and len(keys) > 1:
        keys = list(keys)
        parts = (keys[: len(keys) // 2], keys[len(keys) // 2 :])
        return [[{**message, "keys": part}] for part in parts]
    for instead in _lesser(message, _error_fields(message, error)):
        if fits([instead]):
            return [[instead]]
    return None


def _lesser(message: dict, error_fields: dict[str, Any]) -> Iterator[dict]:
    """Give a message of a stream with its error, then with fewer and fewer other fields."""
    # A failing task needs no data. Without an error field the whole message was tried already.
    left_out = ((), _DESCRIBING, _DESCRIBING + _NEEDED) if error_fields else (_DESCRIBING,)
    for fields in left_out:
        yield {**message, **error_fields, **_empty(message, fields)}


def _empty(message: dict, fields: tuple[str, ...]) -> dict[str, Any]:
    """Give empty values for those of the fields that are not empty."""
    found = {}
    for name in fields:
        value: Any = message.get(name)
        is_pickled = type(value) is ToPickle
        kind = type(value.data if is_pickled else value)
        if kind in (dict, list, tuple, set):
            found[name] = ToPickle(kind()) if is_pickled else kind()
    return found


def _error_fields(message: dict, error: Exception) -> dict[str, Any]:
    """Give the fields of a stream's message that deliver the error to the right task."""
    reported = type(error).__name__, str(error)
    if "expr_ser" in message:
        return {"expr_ser": Serialized(*serialize(Refused(*reported)))}
    if "graph_frames" in message:  # of distributed before 2025.4
        header, frames = serialize(ToPickle(Refused(*reported)))
        return {"graph_header": header, "graph_frames": frames}
    if "run_spec" in message:
        return {"run_spec": ToPickle(Task(message.get("key"), raise_refusal, *reported))}
    if "exception" in message:
        return {key: value for key, value in error_message(error).items() if key in message}
    return {}


def _instead_of_call(message: dict, error: Exception) -> dict | None:
    """Make an actor's method fail: if the request failed, its future would never finish."""
    inner = message.get("msg")
    if message["op"] == "proxy" and type(inner) is dict:
        call = _instead_of_call(inner, error)
        return None if call is None else {**message, "msg": call}
    if message.get("op") != "actor_execute":
        return None
    refused = Refused(type(error).__name__, str(error))
    return {**message, "args": [], "kwargs": Serialize(refused)}


def _with_errors(message: Any, error: Exception) -> Iterator[Any]:
    """Give a reply with errors in place of its largest payloads, twice as many each time.

    The last two are error replies without payloads.
    """
    details = {"exception_text": repr(error), "traceback": None, "traceback_text": ""}
    is_dict = type(message) is dict
    if is_dict and isinstance(
        message.get("result", message.get("exception")), (Serialize, Serialized)
    ):
        # The result or exception of an actor's method, or of a function of `Client.run`.
        yield {"status": "error", "exception": Serialize(error), **details}
    slots = list(_payloads_of(message))
    if len(slots) > 1:  # else it is not worth to serialize the payload, which may take long
        slots.sort(key=lambda slot: -_nbytes_of(slot[2]))
    instead = _copy_of(message)
    for index, (path, last, _) in enumerate(slots, 1):
        place = instead
        for key in path:
            place = place[key]
        place[last] = _stand_in(error, last if path == ("data",) else None)
        # Testing whether a message fits costs as much as sending it: do it rarely.
        if index & (index - 1) == 0 or index == len(slots):
            yield instead
    # For a joining worker, which deserializes nothing, needs the number "time" and logs "message".
    kept = message.items() if is_dict else ()
    plain = {key: value for key, value in kept if type(value) in (int, float)}
    details |= {"exception": pickle.dumps(error), "message": str(error)}
    yield {"status": "uncaught-error", **plain, **details}
    yield {"status": "uncaught-error", **details}  # if the numbers alone are too many


def _payloads_of(item: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any, Any]]:
    pairs = item.items() if type(item) is dict else enumerate(item) if type(item) is list else ()
    for key, value in pairs:
        if isinstance(value, (Serialize, Serialized)):
            yield path, key, value
        else:
            yield from _payloads_of(value, (*path, key))


def _copy_of(item: Any) -> Any:
    if type(item) is dict:
        return {key: _copy_of(value) for key, value in item.items()}
    return [_copy_of(value) for value in item] if type(item) is list else item


def _nbytes_of(payload: Any) -> int:
    try:
        _, frames = serialize(payload)
        return sum(getattr(frame, "nbytes", 0) or len(frame) for frame in frames)
    except Exception:  # an object that cannot be serialized is not the one that is too large
        return 0


def _stand_in(error: Exception, key: Any = None) -> Serialized:
    """Make a payload that raises when it is deserialized, also by other comms.

    With the *key* whose value it stands for: an error of a task names the dependency that way.
    """
    header = {"serializer": "error", "refused": type(error).__name__}
    text = str(error) if key is None else f"{error}; it has the value of {key!r:.{_KEY_LENGTH}}"
    return Serialized(header, [text.encode(errors="replace")])


def raise_if_refused(header: dict, frames: list) -> None:
    """Raise the error, if the payload is one of `_stand_in`.

    Parameters
    ----------
    header : dict
    frames : list of bytes-like
        Of a payload to deserialize.
    """
    kind = header.get("refused")
    if kind is not None and header.get("serializer") == "error" and kind in _STARTS:
        raise_refusal(kind, b"\n".join(map(bytes, frames)).decode(errors="replace"))


async def received(comm: Any, error: Exception) -> None:
    """Fail the tasks that wait for refused data, which Dask itself does not do.

    Parameters
    ----------
    comm : FabricComm
        The comm that has read the error.
    error : MessageTooLargeError or UnavailableError
    """
    if comm.name != _GATHERS:
        return
    _fail_dependents(comm, error)
    if seconds := _pauses.next(comm.peer_address, time.monotonic()):
        await asyncio.sleep(seconds)
        _fail_dependents(comm, error)  # tasks that began to wait for the same keys meanwhile
    await comm.write("OK")  # the sender waits for this reply before the comm is used again


class Pauses:
    """Exponential backoff for answers to a worker that requests refused data again and again.

    `Client.replicate` retries for ever, and a worker retries for each new task that needs the same
    key.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}  # by peer: when, and for how long

    def next(self, peer: str, now: float) -> float:
        """Give the seconds to wait after another refusal by *peer*."""
        last_at, seconds = self._last.pop(peer, (-math.inf, 0.0))
        is_again = now - last_at - seconds < _FORGET_SECONDS
        seconds = min(max(_FIRST_PAUSE_SECONDS, 2 * seconds), _LONGEST_PAUSE_SECONDS) * is_again
        self._last[peer] = now, seconds
        if len(self._last) > _PEER_LIMIT:
            del self._last[next(iter(self._last))]
        return seconds


_pauses = Pauses()


def _fail_dependents(comm: Any, error: Exception) -> None:
    """Report failed tasks to the scheduler: else they wait for ever (dask/distributed#6705)."""
    pool = getattr(comm, "_pool", lambda: None)()
    server: Any = pool.server() if pool is not None and pool.server is not None else None
    state = getattr(server, "state", None)
    if state is None:  # not a worker: the caller of `gather` gets the error
        return
    for key in state.in_flight_workers.get(comm.peer_address, ()):
        for task in state.tasks[key].dependents:
            if task.state == "waiting":
                server.batched_send(_task_erred(task, error))


def _task_erred(task: Any, error: Exception) -> dict[str, Any]:
    return {
        **error_message(error),
        "op": "task-erred",
        "key": task.key,
        "run_id": task.run_id,
        "stimulus_id": f"dependency-refused-{task.key}",
        "thread": None,
        "startstops": task.startstops,
    }
