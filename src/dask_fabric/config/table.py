"""Every key of the configuration, except those of paths, which their providers declare."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

from dask.system import CPU_COUNT

from dask_fabric import providers
from dask_fabric.config.memory import host_memory_bytes
from dask_fabric.keys import (
    SECRET,
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
LIMIT_BYTES_LEAST = 256  # Dask's handshake must fit, see docs/wire-protocol.md
ALLOCATORS = ("cupy", "rmm")  # of device memory
AUTHENTICATION_METHODS = ("key", "munge")  # the names of `dask_fabric.wire.hello`
CHUNK_BYTES_LEAST = 64 << 10
HISTORY_BYTES_LEAST = 1 << 20  # enough for the current job


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


def _secret(value: object) -> bytes | None:
    if value is None:
        return None
    if type(value) is not str or not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise ValueError("it is no key")  # not the value, which may be one with a slip
    return bytes.fromhex(value)


def _message_size(value: object) -> int:
    if value is None:
        return min(host_memory_bytes(), SIZE_BYTES_LIMIT)
    return as_size(value, LIMIT_BYTES_LEAST)


def _queued_size(value: object) -> int:
    if value is None:
        return min(host_memory_bytes() // 4, SIZE_BYTES_LIMIT)
    return as_size(value)


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
            "a buffer unused for this long is returned to the system",
            "A buffer that was unused for this long is returned to the system, at most ten seconds "
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
            f"a whole number from 1 to {THREAD_COUNT_LIMIT}, or null to use the number of CPUs",
            {"type": ["integer", "null"], "minimum": 1, "maximum": THREAD_COUNT_LIMIT},
            "native threads per direction; null: half of the CPUs, 1 to 4",
            "Native threads that move bulk data, for each direction, 1 to 64. `null`: half of the "
            "CPUs of the process, at least 1 and at most 4. Twice as many copy a message of "
            "128 MiB or more within a host.",
        ),
        "busy-poll": seconds(
            "busy_poll_seconds",
            "300us",
            "how long a loop stays awake for a reply that is likely to come",
            "How long an event loop that has sent a message stays awake for the reply, if replies "
            "of this peer have arrived sooner that way. It goes on with other work meanwhile. At "
            "most `10ms`; `0`: never.",
            most=BUSY_POLL_SECONDS_LIMIT,
            note=f", at most {BUSY_POLL_SECONDS_LIMIT}; 0 means never",
        ),
    },
)
_STREAM = Section(
    "The path `stream`: the connection itself.",
    {
        "inline": size(
            "stream_inline_bytes",
            "64 KiB",
            "the event loop itself copies and sends messages up to this size",
            "The event loop itself copies and sends messages up to this size. At most "
            "`fabric.stream.bulk`.",
        ),
        "bulk": size(
            "stream_bulk_bytes",
            "1 MiB",
            "native threads move transfers with more bytes left than this",
            "Native threads move transfers with more bytes left than this.",
        ),
    },
)
_UNIX_SOCKETS = switch(
    "unix_sockets",
    True,
    "within a host, fabric:// uses a Unix socket instead of TCP",
    "Within a host, `fabric://` without TLS uses a Unix-domain socket instead of TCP: a listener "
    "offers one, a client prefers it. `false`: TCP only.",
)
_GPU = Section(
    "Frames in GPU memory, and GPU workers.",
    {
        "enabled": switch_or_auto(
            "gpu_enabled",
            "true, false; auto: once the process has imported a library for it",
            "Whether this process sends and receives [GPU memory](gpu.md). `auto`: once it has "
            "imported CuPy, RMM or `numba.cuda`, or used a GPU by PyTorch. `false`: never, as "
            "under `tcp`.",
        ),
        "chunk": size(
            "gpu_chunk_bytes",
            "8 MiB",
            "device memory is staged in host memory in chunks of this size",
            "GPU memory that is staged in host memory is sent in chunks of this size; one is "
            "copied while the one before is in flight. At least 64 KiB; from 2 MiB on the chunks "
            "are pinned.",
            least=CHUNK_BYTES_LEAST,
        ),
        "allocator": choice(
            "gpu_allocator",
            ALLOCATORS,
            "whose pool of device memory GPU workers use: cupy or rmm",
            "Whose pool of device memory [GPU workers](gpu-workers.md) use: `cupy`, or `rmm`, from "
            "which CuPy then allocates too.",
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
            "device memory that each worker reserves when it starts: 20 GiB, 0.8",
            "Device memory that each GPU worker reserves when it starts, such as `20 GiB`, or "
            "`0.8` of its GPU's. The pool grows beyond that if arrays need more. `null`: none.",
        ),
    },
)
_LIMITS = Section(
    "What a peer may send and leave unread, and how many peers may be in the handshake.",
    {
        "frames": count(
            "frame_count_limit",
            1 << 24,
            "",
            "Most frames of one received message.",
            most=FRAME_COUNT_LIMIT,
        ),
        "header": size(
            "header_bytes_limit",
            "1 GiB",
            "",
            "Most bytes of the header of one received message: names and numbers, since [large "
            "bytes and text are frames](codec.md#a-message-with-payloads); at least 256.",
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
            "Most bytes of one received message, header and frames together, decompressed, and of "
            "the objects that its header becomes; at least 256. `null`: the memory limit of the "
            "receiving process: the host's memory, its cgroup's limit, or its `ulimit`, whichever "
            "is lowest.",
        ),
        "handshakes": count(
            "handshake_count_limit",
            1000,
            "connections in the handshake, of all listeners together",
            "Most connections of a process's listeners (those of one event loop) that are in the "
            "handshake at a time, if a quarter of its open files (`ulimit -n`) is not less. Beyond "
            "it, listeners accept no more for a moment, and drop those that are older than a "
            "second. Where the process has few open files left, fewer may be, and a quarter of a "
            "second is enough.",
            most=1 << 20,
        ),
        "queued": size(
            "queued_bytes_limit",
            "256 MiB",
            "sent to a peer and not yet taken by it; the next message waits beyond this",
            "Bytes that were sent on one comm and that its peer has not taken. Beyond this the "
            "next message waits until the peer has read some. The limit doubles while something of "
            "the peer waits to be read here, so that two sides that both write first do not block "
            "each other. One message may always be queued, however large. If nothing moves for "
            "`fabric.timeouts.stalled`, the comm is closed.",
        ),
        "queued-total": Key(
            "queued_total_bytes_limit",
            None,
            "size",
            _queued_size,
            "a size in bytes, such as 67108864 or '64 MiB', or null for a quarter of this "
            "process's memory",
            {"oneOf": [{"$ref": "#/$defs/size"}, {"type": "null"}]},
            "of all comms together; null: a quarter of the memory limit of this process",
            "The same for all comms of the process together that have more than 4 MiB queued. "
            "Beyond it, each of them waits until its own queue is below 4 MiB; the others go on. "
            "`null`: a quarter of the default of `fabric.limits.message`.",
        ),
    },
    "what a peer may send and leave unread, and how many may be in the handshake",
)
_AUTH = Section(
    "How processes of a user know each other: by a key that all have, or by MUNGE.",
    {
        "method": choice(
            "auth_method",
            AUTHENTICATION_METHODS,
            "how processes prove whose they are: key, if there is one, or munge",
            "How processes prove whose they are: by a [key](howto/key.md), if there is one, or by "
            "[MUNGE](howto/munge.md), which needs no key. All processes of a cluster need the same "
            "method.",
        ),
        "munge-socket": full_path(
            "auth_munge_socket",
            "a socket",
            "of munged; null: that of MUNGE_SOCKET in the environment, or libmunge's default",
            "Full path of the socket of munged. `null`: the one that `MUNGE_SOCKET` in the "
            "environment names, or libmunge's own default.",
        ),
        "key": Key(
            "auth_key",
            None,
            SECRET,
            _secret,
            "null, or 64 hexadecimal digits as `dask fabric key create` makes them",
            {"type": ["string", "null"], "pattern": "^[0-9a-fA-F]{64}$"},
            "the key itself; null: that of a file",
            "The [key](howto/key.md) itself, 64 hexadecimal digits. Whoever can read Dask's "
            "configuration can read it: a file is better. `null`: the key of a file.",
        ),
        "key-file": full_path(
            "auth_key_file",
            "a file",
            "a file with the key; null: ~/.config/dask/fabric.key, if it is there",
            "Full path of the file with the key; only its owner may read it. `null`: "
            "`~/.config/dask/fabric.key`, if it is there.",
        ),
        "require": switch(
            "auth_require",
            False,
            "refuse to listen and to connect without a key or MUNGE",
            "Whether a process with neither a key nor MUNGE refuses to listen and to connect.",
        ),
        "local": switch(
            "auth_local",
            False,
            "on this host, talk to processes of the same user only",
            "Whether this process talks to others on its own host only if these are of the same "
            "user or of root, by what the kernel says, over TCP as over Unix sockets: listeners to "
            "clients, and clients to servers. Processes on other hosts are not affected; use a key "
            "for them.",
        ),
        "encrypt": switch(
            "auth_encrypt",
            False,
            "encrypt between hosts, by TLS from the key, without certificates",
            "Whether connections between hosts are [encrypted](howto/key.md#encrypt) by TLS 1.3, "
            "from the key and without certificates, so not with MUNGE. Both sides need it. "
            "`fabric://` and "
            "`fabric+tls://` do so; the other schemes refuse to start.",
        ),
        "encrypt-local": switch(
            "auth_encrypt_local",
            False,
            "with encrypt: within a host too",
            "Whether `fabric.auth.encrypt` also encrypts within a host. Large arrays are then sent "
            "by TLS instead of mapped or copied.",
        ),
    },
)
_HISTORY = Section(
    "Summaries of jobs that schedulers keep in a SQLite file.",
    {
        "file": full_path(
            "history_file",
            "a file",
            "a SQLite file, shared by all schedulers that name it; null: none",
            "Full path of the SQLite file in which schedulers keep a "
            "[history](statistics.md#history) of their jobs; only its owner may read it (0600). "
            "`null`: no history.",
        ),
        "size": size(
            "history_size_bytes",
            "16 MiB",
            "the oldest jobs are dropped beyond this",
            "Most bytes of that file, at least 1 MiB. Beyond it, the jobs that were written least "
            "recently are dropped.",
            least=HISTORY_BYTES_LEAST,
        ),
        "interval": seconds(
            "history_interval_seconds",
            "5s",
            "how often the current job is written",
            "How often the summary of the current job is written; at least 0.1 s apart.",
            least=0.1,
            note=", at least 0.1 s",
        ),
    },
    "summaries of jobs that the scheduler keeps",
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
            "a partly received message may make no progress for this long",
            "A comm is closed if its peer has begun a message and sends nothing more of it for "
            "this long, or takes nothing of what a message here waits for (`fabric.limits.queued`)"
            "; 0 means no limit.",
            note="; 0 means no limit",
        ),
        "memory": seconds(
            "memory_timeout_seconds",
            "30s",
            "a large message waits this long for a worker that is near its memory limit",
            "While a worker's resident memory is above its pause limit "
            "(`distributed.worker.memory.pause`), messages with more than 1 MiB left to receive "
            "wait, for so long at most, and several are received one after the other if they do "
            "not fit together. Meanwhile Dask spills. After that time they are received, and so "
            "are those that follow on the same connection as long as memory is short. `0`: they "
            "never wait. Frames that are mapped take no memory, and do not wait.",
        ),
        "close": seconds(
            "close_timeout_seconds",
            "2s",
            "an orderly close becomes an abort after this",
            "An orderly close becomes an abort after this time without progress.",
        ),
    },
)


@functools.cache
def sections() -> dict[str, Section | Key]:
    """Give all sections (those of paths included) and single keys under ``fabric:``, by name."""
    return {
        "pool": _POOL,
        "engine": _ENGINE,
        "stream": _STREAM,
        "unix-sockets": _UNIX_SOCKETS,
        **{one.name: one.section for one in providers.found()},
        "gpu": _GPU,
        "limits": _LIMITS,
        "auth": _AUTH,
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
    """Give the defaults of all keys, as in the YAML."""
    return {
        name: one.default
        if isinstance(one, Key)
        else {part: key.default for part, key in one.keys.items()}
        for name, one in sections().items()
    }
