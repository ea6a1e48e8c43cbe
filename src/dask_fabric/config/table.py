"""Every key of the configuration, but for those of paths, which their providers declare."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

from dask.system import CPU_COUNT

from dask_fabric import providers
from dask_fabric.config.memory import host_memory_bytes
from dask_fabric.keys import (
    SIZE_BYTES_LIMIT,
    Key,
    Section,
    as_count,
    as_size,
    choice,
    count,
    full_path,
    seconds,
    size,
    switch,
    switch_or_auto,
    within,
)

FRAME_COUNT_LIMIT = 2**32 - 1  # a u32 on the wire
THREAD_COUNT_LIMIT = 64
BUSY_POLL_SECONDS_LIMIT = 0.01
LIMIT_BYTES_LEAST = 256  # Dask's handshake must come through, see docs/wire-protocol.md
ALLOCATORS = ("cupy", "rmm")  # of device memory
CHUNK_BYTES_LEAST = 64 << 10
HISTORY_BYTES_LEAST = 1 << 20  # there is room for the job that is written


def _threads(value: object) -> int:
    if value is None:
        return min(4, max(1, CPU_COUNT // 2))
    return as_count(value, THREAD_COUNT_LIMIT)


def _pool_size(value: object) -> int | float | None:
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"\s*[01]?\.\d*\s*", value):
        value = float(value)
    if type(value) is float:
        return within(value, math.ulp(0.0), 1.0)
    return as_size(value, 1)


def _message_size(value: object) -> int:
    if value is None:
        return min(host_memory_bytes(), SIZE_BYTES_LIMIT)
    return as_size(value, LIMIT_BYTES_LEAST)


_POOL = Section(
    "The pool of receive buffers of a process.",
    {
        "max-idle": size(
            "pool_max_idle_bytes",
            "1 GiB",
            "receive buffers kept for the next messages, per process",
            "Receive buffers that a process keeps for the next messages. More saves page faults "
            "for large messages; `0` keeps none.",
            note=f"at most {SIZE_BYTES_LIMIT}; 0 keeps none",
        ),
        "idle-timeout": seconds(
            "pool_idle_timeout_seconds",
            "10s",
            "a buffer unused for this long goes back to the system",
            "A buffer that was unused for this long goes back to the system, at most ten seconds "
            "later.",
        ),
    },
)
_ENGINE = Section(
    "The native threads that move bulk data.",
    {
        "threads": Key(
            "engine_thread_count",
            None,
            "count",
            _threads,
            f"a whole number from 1 to {THREAD_COUNT_LIMIT}, or null to choose by the CPUs",
            {"type": ["integer", "null"], "minimum": 1, "maximum": THREAD_COUNT_LIMIT},
            "native threads per direction; null: half of the CPUs, 1 to 4",
            "Native threads that move bulk data, for each direction, 1 to 64. `null`: half of the "
            "CPUs of the process, at least 1 and at most 4. A message of 128 MiB and more is "
            "copied out of its sender's memory by twice as many.",
        ),
        "busy-poll": seconds(
            "busy_poll_seconds",
            "300us",
            "a loop stays awake so long for an answer that is likely to come",
            "A loop that has sent a message does not sleep for so long while it waits for the "
            "answer, where that has been quicker with this peer. It does all else meanwhile. At "
            "most `10ms`; `0`: never.",
            most=BUSY_POLL_SECONDS_LIMIT,
            note=f", at most {BUSY_POLL_SECONDS_LIMIT}; 0 for never",
        ),
    },
)
_STREAM = Section(
    "The path over the connection itself.",
    {
        "inline": size(
            "stream_inline_bytes",
            "64 KiB",
            "messages up to this are copied and sent by the event loop itself",
            "Messages up to this are copied and sent by the event loop itself. At most "
            "`fabric.stream.bulk`.",
        ),
        "bulk": size(
            "stream_bulk_bytes",
            "1 MiB",
            "transfers with more than this left to move go to the engine",
            "Transfers with more than this left to move go to the engine.",
        ),
    },
)
_UNIX_SOCKETS = switch(
    "unix_sockets",
    True,
    "within a host, fabric:// takes a Unix socket instead of TCP",
    "Within a host, `fabric://` without TLS takes a Unix-domain socket instead of TCP: a listener "
    "offers one, a client prefers it. `false`: TCP only.",
)
_GPU = Section(
    "Frames in the memory of GPUs, and workers that compute there.",
    {
        "enabled": switch_or_auto(
            "gpu_enabled",
            "true, false; auto: once the process has imported a library for it",
            "Whether this process sends and receives [memory of GPUs](gpu.md). `auto`: once it "
            "has imported CuPy, RMM, `numba.cuda`, or PyTorch and used its GPU. `false`: not at "
            "all, as under `tcp`.",
        ),
        "chunk": size(
            "gpu_chunk_bytes",
            "8 MiB",
            "device memory goes by host memory in pieces of this size",
            "Memory of GPUs that has to go by host memory goes in pieces of this size, copied "
            "while the one before is on its way. At least 64 KiB; from 2 MiB on the pieces are "
            "pinned.",
            least=CHUNK_BYTES_LEAST,
        ),
        "allocator": choice(
            "gpu_allocator",
            ALLOCATORS,
            "whose pool of device memory GPU workers use: cupy or rmm",
            "Whose pool of device memory [GPU workers](gpu-workers.md) use: `cupy`, or `rmm` for "
            "RMM's, which CuPy then takes its memory from.",
        ),
        "pool": Key(
            "gpu_pool_size",
            None,
            "size",
            _pool_size,
            "a size in bytes, such as 67108864 or '64 MiB', above 0, or a fraction of the GPU's "
            "memory such as 0.8, or null for none",
            {
                "oneOf": [
                    {"$ref": "#/$defs/size"},
                    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                    {"type": "null"},
                ]
            },
            "device memory that each sets aside when it starts: 20 GiB, 0.8",
            "Device memory that each GPU worker sets aside when it starts, such as `20 GiB`, or "
            "`0.8` of its GPU's. The pool grows beyond that where arrays need more. `null`: none.",
        ),
    },
)
_LIMITS = Section(
    "What a peer may claim for one message before it is refused.",
    {
        "frames": count(
            "frame_count_limit",
            1 << 24,
            "",
            "Most frames of one message that is received.",
            most=FRAME_COUNT_LIMIT,
        ),
        "header": size(
            "header_bytes_limit",
            "1 GiB",
            "",
            "Most bytes of the header of one message that is received: of names and numbers, "
            "since [large bytes and text are frames](codec.md#a-message-with-payloads); at least "
            "256.",
            least=LIMIT_BYTES_LEAST,
        ),
        "message": Key(
            "message_bytes_limit",
            None,
            "size",
            _message_size,
            "a size in bytes, such as 67108864 or '64 MiB', at least "
            f"{LIMIT_BYTES_LEAST}, or null for this process's memory",
            {"oneOf": [{"$ref": "#/$defs/size"}, {"type": "null"}]},
            "header and frames together; null: the memory limit of this process",
            "Most bytes of one message that is received, header and frames together, "
            "decompressed; at least 256. `null`: the memory of the process that receives: of the "
            "host, of its cgroup, or by `ulimit`, whichever is least.",
        ),
    },
    "what a peer may claim, for one message",
)
_HISTORY = Section(
    "Summaries of jobs, kept by schedulers in a SQLite file.",
    {
        "file": full_path(
            "history_file",
            "a file",
            "a SQLite file, shared by all schedulers that name it; null: none",
            "Full path of the SQLite file in which schedulers keep a "
            "[history](statistics.md#history) of their jobs; its owner alone may read it (0600). "
            "`null`: no history.",
        ),
        "size": size(
            "history_size_bytes",
            "16 MiB",
            "the oldest jobs are dropped beyond this",
            "Most bytes of that file, at least 1 MiB: jobs that were not written for the longest "
            "time are dropped.",
            least=HISTORY_BYTES_LEAST,
        ),
        "interval": seconds(
            "history_interval_seconds",
            "5s",
            "the job that runs is written so often",
            "The summary of the job that runs is written so often, at least 0.1 s apart.",
            least=0.1,
            note=", at least 0.1 s",
        ),
    },
    "summaries of jobs, kept by the scheduler",
)
_TIMEOUTS = Section(
    "How long this side waits for a peer.",
    {
        "handshake": seconds(
            "handshake_timeout_seconds",
            "30s",
            "a server waits this long for a client's hello",
            "A server waits this long for the hello of a client that has connected.",
            least=math.ulp(0.0),
            note=", above 0",
        ),
        "stalled": seconds(
            "stalled_timeout_seconds",
            "300s",
            "a message that has begun may stand still for this long",
            "A comm is closed when its peer has begun a message and sends nothing of it for this "
            "long; 0 for no limit.",
            note="; 0 for no limit",
        ),
        "close": seconds(
            "close_timeout_seconds",
            "2s",
            "an orderly close is cut short after this",
            "An orderly close is cut short after this.",
        ),
    },
)


@functools.cache
def sections() -> dict[str, Section | Key]:
    """Give all sections under ``fabric:`` by name, those of paths among them, and single keys."""
    return {
        "pool": _POOL,
        "engine": _ENGINE,
        "stream": _STREAM,
        "unix-sockets": _UNIX_SOCKETS,
        **{one.name: one.section for one in providers.found()},
        "gpu": _GPU,
        "limits": _LIMITS,
        "history": _HISTORY,
        "timeouts": _TIMEOUTS,
    }


@functools.cache
def keys() -> dict[str, Key]:
    """Give all keys by their dotted names below ``fabric``."""
    found: dict[str, Key] = {}
    for name, one in sections().items():
        if isinstance(one, Key):
            found[name] = one
        else:
            found |= {f"{name}.{part}": key for part, key in one.keys.items()}
    return found


def nested_defaults() -> dict[str, Any]:
    """Give the defaults of all keys, as they stand in YAML."""
    return {
        name: one.default
        if isinstance(one, Key)
        else {part: key.default for part, key in one.keys.items()}
        for name, one in sections().items()
    }
