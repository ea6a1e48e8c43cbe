"""Reading the memory of another process: permissions, and identifying the process."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
import threading

import pytest

from dask_fabric.paths.cma import process as cma

NOBODY = 65534


@contextlib.contextmanager
def child(main):
    """A forked child that has sent the result of *main*, and lives until the end."""
    mine, its = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(its, json.dumps(main()).encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(its)
    try:
        told = os.read(mine, 65536)
        assert told, "the child failed"
        yield pid, json.loads(told)
    finally:
        os.close(mine)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


SECRET = cma.Secret()


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Readable memory is read, however busy the host is."""
    monkeypatch.setattr(cma, "PROBE_SECONDS", 30.0)


def told_secret():
    global SECRET
    SECRET = cma.Secret()  # a child has the memory of its parent, and that one's secret
    return [SECRET.address, SECRET.nonce.hex()]


def test_the_secret_is_there():
    address, nonce = SECRET.address, SECRET.nonce
    assert ctypes.string_at(address, len(nonce)) == nonce and len(nonce) == 16
    assert cma.probe(os.getpid(), address, nonce) == ""


def test_a_child_can_be_read_and_has_a_secret_of_its_own():
    with child(told_secret) as (pid, (address, nonce)):
        assert bytes.fromhex(nonce) != SECRET.nonce
        assert cma.probe(pid, address, bytes.fromhex(nonce)) == ""


def test_a_parent_that_the_child_may_not_read_is_not_read():
    """A process of another user: EPERM, with what may be the reason."""
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    address, nonce = SECRET.address, SECRET.nonce

    def as_nobody():
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return cma.probe(os.getppid(), address, nonce)

    with child(as_nobody) as (_, reason):
        assert "not permitted" in reason and "ptrace_scope" in reason


def test_another_process_is_not_taken_for_the_peer():
    address, nonce = SECRET.address, SECRET.nonce
    wrong = bytes(16)
    assert "another one here" in cma.probe(os.getpid(), address, wrong)
    with child(told_secret) as (pid, _):
        assert "another one here" in cma.probe(pid, address, nonce)


def test_a_process_that_is_gone():
    with child(told_secret) as (pid, (address, nonce)):
        pass
    assert f"no process {pid} here" in cma.probe(pid, address, bytes.fromhex(nonce))


def test_a_process_out_of_sight():
    """What SO_PEERCRED gives for a peer of another pid namespace."""
    address, nonce = SECRET.address, SECRET.nonce
    assert "another pid namespace" in cma.probe(0, address, nonce)


@pytest.mark.parametrize("address", [1, 4095, 2**47, 2**63 - 1, 2**63 - 16])
def test_an_address_where_nothing_is(address):
    assert "another one here" in cma.probe(os.getpid(), address, bytes(16))


@pytest.mark.parametrize(
    ("pid", "address", "nonce"),
    [
        (-1, 4096, bytes(16)),
        (2**31, 4096, bytes(16)),
        (2**64, 4096, bytes(16)),
        (1, 0, bytes(16)),
        (1, 2**63, bytes(16)),
        (1, 2**64, bytes(16)),
        (1, 4096, b""),
        (1, 4096, bytes(15)),
        (1, 4096, bytes(4096)),
    ],
)
def test_what_makes_no_sense_is_not_tried(pid, address, nonce):
    assert "the same release" in cma.probe(pid, address, nonce)


def test_a_secret_that_is_slow_to_read_is_given_up(slow_memory, monkeypatch):
    """A peer may name a page that never comes: no event loop waits for it."""
    monkeypatch.setattr(cma, "PROBE_SECONDS", 0.05)
    memory = slow_memory(1)
    process, reason = cma.attach(os.getpid(), memory.address, bytes(16))
    assert process is None and "could not be read within 50 ms" in reason
    assert memory.is_awaited()


def test_a_secret_that_is_not_in_memory_is_waited_for(slow_memory):
    memory = slow_memory(1)
    threading.Timer(0.001, memory.arrive).start()
    process, reason = cma.attach(os.getpid(), memory.address, bytes(16))
    assert (process, reason) == (cma.process_of(os.getpid()), "")


def test_a_secret_is_brought_into_memory_before_a_peer_reads_it():
    secret, process = cma.Secret(), cma.process_of(os.getpid())
    libc = ctypes.CDLL(None, use_errno=True)
    page = secret.address // mmap.PAGESIZE * mmap.PAGESIZE
    if libc.madvise(ctypes.c_void_p(page), mmap.PAGESIZE, 21) != 0:  # MADV_PAGEOUT
        pytest.skip("this kernel swaps nothing out on request")
    secret.touch()
    assert process.is_resident(secret.address, 16)


def test_permission_for_peers_is_no_error_where_nothing_restricts():
    cma.allow_peers()
    assert cma.probe(os.getpid(), SECRET.address, SECRET.nonce) == ""


def test_each_secret_is_another():
    """Copies of a running process have the same memory, and must not take themselves for a peer."""
    secrets = [cma.Secret() for _ in range(100)]
    assert len({secret.nonce for secret in secrets}) == 100
    assert len({secret.address for secret in secrets}) == 100


def test_a_process_is_found_by_its_secret():
    with child(told_secret) as (pid, (address, nonce)):
        process, reason = cma.attach(pid, address, bytes.fromhex(nonce))
        assert reason == "" and process.pid == pid and process.lives()
        assert cma.attach(pid, address, bytes.fromhex(nonce))[0] is process
    assert not process.lives()
    process, reason = cma.attach(pid, address, bytes.fromhex(nonce))
    assert process is None and f"no process {pid} here" in reason


def test_a_process_that_is_not_the_peer_is_not_kept():
    with child(told_secret) as (pid, _):
        process, reason = cma.attach(pid, SECRET.address, bytes(16))
        assert process is None and "another one here" in reason


@pytest.mark.untraced
def test_another_program_in_the_same_process_is_another_one():
    """Its memory is gone, though its number is not."""
    with child(told_secret) as (pid, (address, nonce)):
        process, _ = cma.attach(pid, address, bytes.fromhex(nonce))
        assert process.lives()
    program = "import os; input(); os.execlp('sh', 'sh', '-c', 'echo there; cat')"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        process = cma.process_of(other.pid)
        assert process.lives()
        other.stdin.write(b"go\n")
        other.stdin.flush()
        assert other.stdout.readline() == b"there\n"
        assert not process.lives() and cma.process_of(other.pid).lives()
        other.stdin.close()


# ---------------------------------------------------------------- what is resident

PAGE_BYTES = mmap.PAGESIZE
PAGE_COUNT = 1600  # more than the page map is asked for at once, and than one huge page has


@pytest.mark.parametrize("scans", [True, False])
@pytest.mark.parametrize("absent", [None, 0, 1, 511, 512, 1234, PAGE_COUNT - 1])
def test_one_page_that_is_absent_is_found(absent, scans):
    memory = mmap.mmap(-1, PAGE_COUNT * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    view = (ctypes.c_char * len(memory)).from_buffer(memory)
    process, begin = cma.process_of(os.getpid()), ctypes.addressof(view)

    def is_resident(first_page, page_count):
        """Also where only some bytes of the first and of the last page are asked for."""
        first, nbytes = begin + first_page * PAGE_BYTES, page_count * PAGE_BYTES
        found = process.is_resident(first, nbytes, scans)
        assert (
            process.is_resident(first + PAGE_BYTES - 1, nbytes - 2 * PAGE_BYTES + 2, scans) == found
        )
        return found

    assert not is_resident(0, PAGE_COUNT)  # nobody has touched it
    memory.write(b"x" * len(memory))
    assert is_resident(0, PAGE_COUNT)
    if absent is not None:
        memory.madvise(mmap.MADV_DONTNEED, absent * PAGE_BYTES, PAGE_BYTES)
        assert not is_resident(0, PAGE_COUNT)
        if absent > 2:
            assert is_resident(0, absent)
        if absent < PAGE_COUNT - 3:
            assert is_resident(absent + 1, PAGE_COUNT - absent - 1)
    del view


@pytest.mark.parametrize("scans", [True, False])
@pytest.mark.parametrize("address", [1 << 63, (1 << 64) - 1])
def test_addresses_of_the_kernel_are_not_resident(address, scans):
    assert not cma.process_of(os.getpid()).is_resident(address, 10, scans)
