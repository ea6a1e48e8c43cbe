"""The fuzzer's oracle notices each thing that no input may cause, and nothing else."""

from __future__ import annotations

import ctypes
import gc
import os
import time

import pytest
from tests.fuzzing.oracle import Fault, Oracle, signature
from tests.fuzzing.registry import Target

from dask_fabric.errors import ProtocolError

pytestmark = pytest.mark.resident

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
kept: list[object] = []


def harm(data: bytes) -> None:
    """Cause what an input names."""
    if data == b"error of ours":
        raise ProtocolError("refused")
    if data == b"exception":
        raise KeyError("of nobody")
    if data == b"stall":
        end = time.thread_time() + 0.06
        while time.thread_time() < end:
            pass
    elif data == b"memory":
        bytearray(160 << 20)  # far above the limit: threads may free some of their memory meanwhile
    elif data == b"descriptor":
        kept.append(os.open("/dev/null", os.O_RDONLY))
    elif data == b"object":
        kept.append(object())
    elif data == b"malloc":
        libc.malloc(1000)


@pytest.fixture(autouse=True)
def clean(clean_memory):
    yield
    gc.unfreeze()  # what the oracle has frozen, and more
    gc.collect()
    gc.freeze()
    for one in kept:
        if isinstance(one, int):
            os.close(one)
    kept.clear()


def kinds(data: bytes) -> set[str]:
    found: list[Fault] = []
    run = Oracle(Target("harm", harm, [b"good"], [], 1), found.append)
    run(b"good")
    run(data)
    run.end_batch()
    assert {fault.data for fault in found} <= {data}
    return {fault.kind for fault in found}


@pytest.mark.parametrize("data", [b"good", b"error of ours"])
def test_no_harm(data):
    assert kinds(data) == set()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"exception", "exception"),
        (b"stall", "stall"),
        (b"memory", "memory"),
        (b"descriptor", "leak"),
        (b"object", "leak"),
        (b"malloc", "leak"),
    ],
)
def test_harm(data, kind):
    # Again, if a thread that an earlier test has left frees something at the same time.
    assert any(kind in kinds(data) for _ in range(3))


def test_faults_of_one_cause_have_one_signature():
    def text(message: str, line: int) -> str:
        return f'Traceback\n  File "a.py", line {line}, in b\n    f()\nKeyError: {message}'

    first, again, other = (
        Fault("exception", text(message, line), b"")
        for message, line in (("x", 1), ("y", 1), ("x", 2))
    )
    assert signature(first) == signature(again) != signature(other)
