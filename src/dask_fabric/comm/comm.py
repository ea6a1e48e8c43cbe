"""`FabricComm`: Dask's ``Comm`` over one open channel.

Theory of operation
-------------------
A comm joins a channel, which moves headers and frames, and the codec, which makes them from
messages. The comm itself decides three things.

*Where the work is done.* The codec estimates its work in bytes. Little is done at once, untimed.
Above Dask's offload threshold it goes to Dask's offload thread. The rest is done here, and timed.

*How device memory travels.* Frames of device memory are sent as they are if a path carries them.
Otherwise they are staged: sent before their message in chunks of host memory, which the peer's comm
collects (`comm.device`). `read` recognises chunks by their mark.

*What an error ends.* A message that cannot be serialized or deserialized is an error of that
message, and the comm stays open. One above a limit of the peer is not sent; where the peer waits
for it, an error is sent instead (`comm.serialize.too_large`). A violation of the protocol, the end
of the stream and a cancelled read or write end the comm, since a message may be incomplete then.

`write` queues its message at once. Only the next one waits, if the peer leaves much of it unread
(`engine.backlog`). The first message each way is Dask's handshake, which is decoded without the
codec, since the peer is a stranger until then (`comm.dask_handshake`).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import weakref
from collections.abc import Callable
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from distributed.comm import utils as comm_utils
from distributed.comm.core import Comm, CommClosedError
from distributed.utils import offload

from dask_fabric.comm import dask_handshake
from dask_fabric.comm.device import staging_receive, staging_send
from dask_fabric.comm.network import refusals
from dask_fabric.comm.serialize import too_large
from dask_fabric.comm.serialize.distributed import codec
from dask_fabric.comm.serialize.snapshots import snapshot
from dask_fabric.config import Settings
from dask_fabric.engine import backlog
from dask_fabric.errors import (
    ChannelClosedError,
    MessageTooLargeError,
    ProtocolError,
    UnavailableError,
)
from dask_fabric.memory import device
from dask_fabric.telemetry import refused, registry
from dask_fabric.telemetry.tcp_info import parse_tcp_info
from dask_fabric.wire.hello import CHUNKS
from dask_fabric.wire.records import error_record

if TYPE_CHECKING:
    from dask_fabric.codec.codec import Encoding
    from dask_fabric.engine.channel import Channel
    from dask_fabric.wire.metrics import Metrics

logger = logging.getLogger(__name__)

# Less (de)serialization work is not timed: reading the clock would distort the figure.
_TIMED_BYTES = 4 << 10
# Needed with every message; a global is faster than an attribute of the module.
_MARK, _MARK_BYTES = staging_send.MARK, len(staging_send.MARK)
_BEHIND_BYTES = backlog.LEAST_BYTES

_ENDS_COMM = (ChannelClosedError, ProtocolError, EOFError, OSError)


def _give_up(reference: weakref.ref[FabricComm], seconds: float) -> None:
    comm = reference()
    if comm is not None and comm._is_new:
        text = (
            f"the server has not begun Dask's handshake within {seconds:g} seconds "
            "(fabric.timeouts.handshake in Dask's configuration)"
        )
        comm._channel.abort(ChannelClosedError(text))


class FabricComm(Comm):
    """A message-oriented connection over one channel.

    Parameters
    ----------
    channel
        An open channel of `dask_fabric.engine`; the comm owns it from now on.
    local_addr, peer_addr : str
        Addresses with their scheme.
    deserialize : bool
        Whether messages are deserialized when read, or passed through.
    settings : dask_fabric.config.Settings
        The settings of the channel.
    extra_info : dict, optional
        Facts about the connection from the listener or connector (TLS: ``peercert``, ``cipher``).
    """

    def __init__(
        self,
        channel: Channel,
        local_addr: str,
        peer_addr: str,
        deserialize: bool,
        settings: Settings,
        extra_info: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(deserialize)
        self._channel = channel
        self._local_addr = local_addr
        self._peer_addr = peer_addr
        self._settings = settings
        self._limit_bytes = settings.message_bytes_limit
        self._extra = extra_info
        self._loop = asyncio.get_running_loop()
        self._figures = channel.core.metrics
        self._takes_chunks = CHUNKS in channel.peer.features
        self._outgoing: staging_send.Outgoing | None = None
        self._incoming: staging_receive.Incoming | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._waited_count = 0
        self._is_behind = False  # whether much was queued for the peer after the last message
        # Called with the bytes of each message; set by the connector for a path that wants to know.
        self.on_moved: Callable[[int, bool], None] | None = None
        channel.core.expect_first(dask_handshake.BYTES_LIMIT)
        self._is_new = True  # until the peer's side of Dask's handshake has been read
        self._context: dict[str, Any] | None = None
        self._context_options: dict[str, Any] | None = None  # that `_context` was made with
        registry.opened(self, channel)

    @property
    def local_address(self) -> str:
        return self._local_addr

    @property
    def peer_address(self) -> str:
        return self._peer_addr

    @property
    def same_host(self) -> bool:
        """Whether both ends have the same IP address, according to the socket."""
        local, peer = self._channel.local_sockname, self._channel.peer_sockname
        return self.control_stream == "unix" or local[0] == peer[0]

    @property
    def control_stream(self) -> str:
        """The kind of socket under the control stream: ``unix`` or ``tcp``."""
        # The name of a TCP socket is a tuple, that of a Unix socket is not.
        return "tcp" if isinstance(self._channel.local_sockname, tuple) else "unix"

    @property
    def extra_info(self) -> dict[str, Any]:
        return self._extra or {}

    @property
    def paths(self) -> dict[str, str]:
        """For each kind of memory the path that takes every large frame.

        ``path_order`` of `statistics` has the paths before it too, which take some of them.
        """
        return dict(self._channel.choice.paths)

    @property
    def refused_paths(self) -> dict[str, str]:
        """The paths that are not in use, each with the reason."""
        return dict(self._channel.choice.refused)

    @property
    def peer_name(self) -> str:
        """The name under which the comm's figures are summed up; see `registry.peer_name`."""
        return registry.peer_name(self._peer_addr, self._channel.server_side)

    def figures(self) -> dict[str, Metrics]:
        """Give the channel's `Metrics` by path."""
        return self._channel.figures()

    def statistics(self) -> dict[str, Any]:
        """Give the channel's counters, with its addresses, stream and paths."""
        paths = self._channel.core.paths
        return {
            "local_address": self._local_addr,
            "peer_address": self._peer_addr,
            "peer_software": self._channel.peer.software,
            "control_stream": self.control_stream,
            "paths": self.paths,
            "path_order": dict(self._channel.choice.ordered),
            "refused": self.refused_paths,
            "kernel": parse_tcp_info(self._channel.tcp_info()),
            "staged": self._staged_statistics(),
            "waited_writes": self._waited_count,
            "connections": 1 + sum(path.connection_count for path in paths),
            "flows": next((path.flows for path in paths if path.flows), {}),
            **self._channel.statistics(),
        }

    def _staged_statistics(self) -> dict[str, int]:
        outgoing, incoming = self._outgoing, self._incoming
        return {
            "frames_sent": outgoing.frame_count if outgoing else 0,
            "frames_received": incoming.frame_count if incoming else 0,
            "bytes_sent": outgoing.nbytes if outgoing else 0,
            "bytes_received": incoming.nbytes if incoming else 0,
        }

    async def read(self, deserializers: Any = None) -> Any:
        """Read one message; the first one is the peer's half of Dask's handshake.

        Raises
        ------
        CommClosedError
            Either side closed the comm, or the connection broke.
        Exception
            The message cannot be deserialized; the comm stays usable.
        """
        try:
            message = self._channel.receive_nowait()
            if message is None:
                message = await self._channel.receive()
            is_staged = message[0][:_MARK_BYTES] == _MARK
            if is_staged and not self._is_new:
                message = await self._receive_staged(*message)
        except BaseException as exc:
            self._end(exc)
            raise

        header, frames = message
        if self._is_new:
            return self._take_handshake(header, frames)
        deserialize = self.deserialize
        try:
            if frames:
                if self.on_moved is not None:
                    self.on_moved(sum(memoryview(frame).nbytes for frame in frames), False)
                if deserialize and (is_staged or self._channel.core.receives_devices):
                    frames = await staging_receive.to_device(frames)
            work_bytes = codec.offload_bytes(header, frames, deserialize)
            if not work_bytes or self._is_little(work_bytes):
                return codec.decode(header, frames, deserialize, deserializers, self._limit_bytes)
            begin_ns = perf_counter_ns()
            known = header, frames, deserialize, deserializers, self._limit_bytes
            if self._offloads(work_bytes):
                decoded = await offload(codec.decode, *known)
            else:
                decoded = codec.decode(*known)
            self._figures.deserialized(perf_counter_ns() - begin_ns)
            return decoded
        except too_large.REFUSALS as exc:
            await too_large.received(self, exc)
            raise exc.with_traceback(None) from None
        except (EOFError, ProtocolError, asyncio.CancelledError) as exc:
            # Truncation is a connection error, not one object that cannot be deserialized.
            self._end(exc)
            raise

    def expect_handshake(self) -> None:
        """End the comm unless the server begins Dask's handshake soon: Dask itself would wait.

        It does so in the same turn in which it sends its hello.
        """
        seconds = self._settings.handshake_timeout_seconds
        self._patience = self._loop.call_later(seconds, _give_up, weakref.ref(self), seconds)

    def _take_handshake(self, header: bytes | memoryview, frames: list) -> dict[str, Any]:
        try:
            handshake = dask_handshake.decode(header, frames)
        except ProtocolError as exc:
            self._end(exc)
            raise
        self._is_new = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        return handshake

    async def write(self, msg: Any, serializers: Any = None, on_error: str = "message") -> int:
        """Queue one message for sending.

        If the peer has left much of earlier messages unread, wait first until it has read some.

        Returns
        -------
        int
            Bytes of the message.

        Raises
        ------
        CommClosedError
            Either side closed the comm, or the connection broke.
        Exception
            The message cannot be serialized; the comm stays usable.
        """
        if self._is_behind:
            await self._wait_for_room()
        if self._channel.closed:
            self._raise_closed()
        if self._context_options is not self.handshake_options:  # Dask sets these last
            self._context_options = self.handshake_options
            self._context = {
                "sender": self.local_info,
                "recipient": self.remote_info,
                **self.handshake_options,
            }
        try:
            encoding = codec.begin(msg, serializers, on_error, self._context)
            if serializers is None and encoding.payloads and self._sends_devices():
                encoding.serializers = staging_send.FAMILIES
            work_bytes = encoding.offload_bytes
            if not work_bytes or self._is_little(work_bytes):
                header, frames = encoding.finish()
            else:
                header, frames = await self._finish(encoding, work_bytes)
            sources = None
            if frames:
                if encoding.saved_bytes:
                    self._check_limits(header, frames, encoding.saved_bytes)
                if self.deserialize:  # else the frames were received, and no user can change them
                    frames = snapshot(msg, frames)
                if any(map(device.belongs_on_device, frames)):
                    sources = await self._sources_of(frames)
        except asyncio.CancelledError:
            self.abort()
            raise
        except too_large.REFUSALS as error:
            return await self._write_instead(msg, error, serializers, on_error)
        except Exception:
            # When a reply fails here, Dask's server logs it at level DEBUG only.
            logger.exception("Could not serialize a message in %s", self)
            raise
        try:
            if sources:
                nbytes = await self._send_staged(header, frames, sources)
            else:
                nbytes = self._channel.send(header, frames)
                if frames and self.on_moved is not None:
                    self.on_moved(nbytes, True)
        except MessageTooLargeError as error:
            return await self._write_instead(msg, error, serializers, on_error)
        except BaseException as exc:
            self._end(exc)
            raise
        if self._channel.queued_bytes > _BEHIND_BYTES:
            self._is_behind = True
            backlog.add(self._channel)
            if self._channel.pending_bytes > _BEHIND_BYTES:
                # A coroutine that writes in a loop must let the event loop send what is queued.
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    self.abort()
                    raise
        return nbytes

    async def _wait_for_room(self) -> None:
        limit_bytes = backlog.room_bytes(self._settings)
        if self._channel.queued_bytes > limit_bytes:
            self._waited_count += 1
            await backlog.wait_for_room(
                self._channel, limit_bytes, self._settings.stalled_timeout_seconds
            )
        self._is_behind = self._channel.queued_bytes > _BEHIND_BYTES

    async def _write_instead(
        self, msg: Any, error: Exception, serializers: Any, on_error: str
    ) -> int:
        """Send an error in place of *msg*, which cannot be sent, or raise *error*."""
        if isinstance(error, MessageTooLargeError):
            refused.add(refused.MESSAGE)

        def fits(message: Any) -> bool:
            try:
                encoding = codec.begin(message, serializers, on_error)
                header, frames = encoding.finish()
                self._check_limits(header, frames, encoding.saved_bytes)
            except MessageTooLargeError:
                return False
            return self._takes_chunks or not any(map(device.span_of, frames))

        # It serializes again: others must not wait for that.
        find = functools.partial(too_large.instead_of, msg, error, on_error, fits)
        try:
            instead = await offload(find) if self.allow_offload else find()
        except asyncio.CancelledError:
            self.abort()
            raise
        if instead is None or len(instead) < 2:
            # Rate-limited: any peer may announce limits so low that every message fails.
            kind = "messages were larger than their peers accept"
            refusals.of(self._loop).warn(kind, "Could not send a message in %s: %s", self, error)
        if instead is None:
            raise error
        return sum([await self.write(part, serializers, on_error) for part in instead])

    def _check_limits(self, header: Any, frames: list, saved_bytes: int) -> None:
        """Raise if the message exceeds the peer's limits, counted as decompressed."""
        spans = [device.span_of(frame) for frame in frames]
        nbytes = sum(
            (memoryview(frame) if span is None else span).nbytes
            for frame, span in zip(frames, spans, strict=True)
        )
        total_bytes = len(header) + nbytes + saved_bytes
        self._channel.check_limits(len(frames), len(header), total_bytes)

    def _sends_devices(self) -> bool:
        return self._takes_chunks and device.current() is not None

    def _is_little(self, work_bytes: int) -> bool:
        """Whether to (de)serialize in the event loop, untimed."""
        return work_bytes < _TIMED_BYTES and not self._offloads(work_bytes)

    def _offloads(self, work_bytes: int) -> bool:
        if work_bytes < 0:
            return True
        threshold_bytes = comm_utils.OFFLOAD_THRESHOLD  # 0 or False: never
        return bool(threshold_bytes) and self.allow_offload and work_bytes > threshold_bytes

    async def _finish(self, encoding: Encoding, work_bytes: int) -> tuple[Any, list]:
        """Serialize and time it; large payloads go to Dask's offload thread."""
        begin_ns = perf_counter_ns()
        if self._offloads(work_bytes):
            header, frames = await offload(encoding.finish)
        else:
            header, frames = encoding.finish()
        self._figures.serialized(perf_counter_ns() - begin_ns)
        return header, frames

    async def _sources_of(self, frames: list) -> dict[int, staging_send.Source]:
        """Wait until device frames are computed; give those to send in chunks, by index."""
        if self._takes_chunks:
            sources = await self._loop.run_in_executor(None, staging_send.sources_of, frames)
            is_direct = self._channel.core.sends_devices and not any(
                isinstance(frame, device.StagedFrame) for frame in frames
            )
            return {} if is_direct else sources
        if any(device.span_of(frame) is not None for frame in frames):
            raise UnavailableError(
                f"{self._peer_addr} does not accept GPU memory (fabric.gpu.enabled may be false in "
                "its configuration)"
            )
        return {}  # staged in host memory already: sent as ordinary frames

    async def _send_staged(self, header: Any, frames: list, sources: dict) -> int:
        if self._outgoing is None:
            self._outgoing = staging_send.Outgoing(self._channel, self._settings.gpu_chunk_bytes)
        return await self._outgoing.send(header, frames, sources)

    async def _receive_staged(self, header: Any, frames: list) -> tuple[Any, list]:
        """Take chunks until the message that they belong to, or any other message, arrives."""
        if self._incoming is None:
            self._incoming = staging_receive.Incoming(self._settings)
        while True:
            message = await self._incoming.receive(header, frames, self.deserialize)
            if message is not None:
                return message
            message = self._channel.receive_nowait()
            if message is None:
                message = await self._channel.receive()
            header, frames = message
            if header[: len(staging_send.MARK)] != staging_send.MARK:
                return message

    async def close(self) -> None:
        """Flush and close; aborts after `fabric.timeouts.close` without progress."""
        try:
            await self._channel.close(self._settings.close_timeout_seconds)
        except _ENDS_COMM as exc:
            logger.debug("in %s: %s while closing", self, exc)
            self.abort()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Close at once; queued bytes are lost."""
        self._channel.abort()
        if self._incoming is not None:
            self._incoming.forget()

    def closed(self) -> bool:
        return self._channel.ended()

    def _raise_closed(self) -> None:
        try:
            self._channel.check_open()
        except _ENDS_COMM as exc:
            raise CommClosedError(f"in {self}: {exc}") from exc

    def _end(self, exc: BaseException) -> None:
        """Abort because of *exc*. Raise `CommClosedError` if it ended the comm, else return."""
        if isinstance(exc, ProtocolError) and not exc.reply:
            exc.reply = error_record(f"protocol violation: {exc}")
        self._channel.abort(exc if isinstance(exc, _ENDS_COMM) else None)
        if isinstance(exc, ProtocolError) and not self._is_new:  # else the listener logs it
            refused.add(refused.COMM)
            log = refusals.of(self._loop)
            log.warn("comms were closed: the peer broke the protocol", "Closing %s: %s", self, exc)
        if isinstance(exc, _ENDS_COMM):
            raise CommClosedError(f"in {self}: {exc}") from exc

    def __del__(self) -> None:
        channel = getattr(self, "_channel", None)  # `__init__` may have failed
        if channel is None or channel.closed or sys.is_finalizing():
            return
        logger.warning("Closing dangling channel in %r", self)
        # Garbage collection runs in any thread, but a channel belongs to its loop's thread.
        try:
            self._loop.call_soon_threadsafe(channel.abort)
        except RuntimeError:  # the loop is closed: no thread runs it any more
            channel.abort()
