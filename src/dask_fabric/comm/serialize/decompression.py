"""Bounded decompression: a few bytes from a peer must not become gigabytes here."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

from distributed.metrics import context_meter
from distributed.protocol.compression import compressions

from dask_fabric.wire.records import excess

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# By two bits of a frame's descriptor: sizes of the dictionary id and of the content size.
_ZSTD_DICTIONARY_BYTES = (0, 1, 2, 4)
_ZSTD_SIZE_BYTES = (0, 2, 4, 8)
_ZLIB_INPUT_BYTES = 64 << 10
_ZLIB_PIECE_BYTES = 1 << 20


@context_meter.meter("decompress")
def decompress(names: Sequence, frames: Sequence, total_bytes: int, limit_bytes: int) -> list:
    """Decompress the frames of one payload.

    Parameters
    ----------
    names : sequence of str, None or False
        The compression of each frame.
    frames : sequence of bytes-like
    total_bytes : int
        Size of the message so far: as received, but with earlier frames decompressed.
    limit_bytes : int
        The limit on the size of the decompressed message.

    Raises
    ------
    LimitError
        The message would exceed the limit; the excess was not allocated.
    """
    made = []
    for name, frame in zip(names, frames, strict=True):
        if name:
            total_bytes -= memoryview(frame).nbytes
            frame = _decompress(name, frame, total_bytes, limit_bytes)
            total_bytes += _check(memoryview(frame).nbytes, total_bytes, limit_bytes)
        made.append(frame)
    return made


def growth_bytes(names: Sequence, frames: Sequence) -> int:
    """Give by how many bytes frames grow when decompressed, as far as they state their size."""
    return sum(
        _SIZES[name](memoryview(frame)) - memoryview(frame).nbytes
        for name, frame in zip(names, frames, strict=False)
        if name in _SIZES
    )


def _decompress(name: str, frame: Any, total_bytes: int, limit_bytes: int) -> Any:
    if name == "zlib" and compressions[name].decompress is zlib.decompress:
        return _decompress_zlib(frame, limit_bytes - total_bytes)
    if name in _SIZES:
        _check(_SIZES[name](memoryview(frame)), total_bytes, limit_bytes)
    return compressions[name].decompress(frame)


def _check(nbytes: int, total_bytes: int, limit_bytes: int) -> int:
    if total_bytes + nbytes > limit_bytes:
        raise excess("decompressed message", total_bytes + nbytes, limit_bytes, "message")
    return nbytes


def _decompress_zlib(frame: Any, most_bytes: int) -> memoryview:
    """Decompress a frame that does not state its size; stop beyond *most_bytes*.

    In pieces: in one call, zlib joins the parts of the result, which takes twice the memory.
    """
    stream, made, view = zlib.decompressobj(), bytearray(), memoryview(frame).cast("B")
    for begin in range(0, view.nbytes, _ZLIB_INPUT_BYTES):
        data: memoryview | bytes = view[begin : begin + _ZLIB_INPUT_BYTES]
        while not stream.eof and len(made) <= most_bytes:
            made += stream.decompress(data, _ZLIB_PIECE_BYTES)
            data = stream.unconsumed_tail
            if not data:
                break
    while not stream.eof and len(made) <= most_bytes:
        piece = stream.decompress(b"", _ZLIB_PIECE_BYTES)  # the rest of the output
        if not piece:
            raise zlib.error("incomplete or truncated stream")
        made += piece
    return memoryview(made).toreadonly()


def _lz4_bytes(frame: memoryview) -> int:
    return int.from_bytes(frame[:4], "little")


def _snappy_bytes(frame: memoryview) -> int:
    nbytes = 0
    for index, byte in enumerate(frame[:5]):
        nbytes |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            break
    return nbytes


def _zstd_bytes(frame: memoryview) -> int:
    """Read the content size; 0 if there is none: distributed does not decompress such frames."""
    if frame[:4] != _ZSTD_MAGIC or frame.nbytes < 5:
        return 0
    descriptor = frame[4]
    is_single = descriptor >> 5 & 1
    size_bytes = _ZSTD_SIZE_BYTES[descriptor >> 6] or is_single
    start = 5 + (not is_single) + _ZSTD_DICTIONARY_BYTES[descriptor & 3]
    size = int.from_bytes(frame[start : start + size_bytes], "little")
    return size + 256 if size_bytes == 2 else size


# How to read the size that a compressed frame states; the decompressor never exceeds it.
_SIZES: dict[str, Callable[[memoryview], int]] = {
    "lz4": _lz4_bytes,
    "snappy": _snappy_bytes,
    "zstd": _zstd_bytes,
}
