"""Every UCX library of this machine; the tests run with each."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..conftest import ucx_params

PATIENCE_SECONDS = 30


def pytest_generate_tests(metafunc):
    if "library" in metafunc.fixturenames:
        none = pytest.param(None, marks=pytest.mark.skip("no UCX on this host"))
        metafunc.parametrize("library", ucx_params() or [none], scope="session")


class Peer:
    """A process that runs ``ucx_peer.py``; a call has it evaluate an expression."""

    def __init__(self, library) -> None:
        script = Path(__file__).with_name("ucx_peer.py")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.library = library

    def __call__(self, expression: str):
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        done, result = ast.literal_eval(self.process.stdout.readline())
        assert done, result
        return result

    def start(self, **options: str) -> bytes:
        return self(f"start({str(repr(self.library))!r}, {list(options.items())!r})")

    def until(self, expression: str) -> None:
        """Ask until it is true."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self(expression):
            assert time.monotonic() < deadline, (expression, self("ucx.statistics()"))

    def figure(self, name: str) -> int:
        return self("ucx.statistics()")[name]

    def end(self) -> int:
        """Let the interpreter exit; give its status."""
        self.process.stdin.close()
        return self.process.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def new_peer(library):
    peers = []

    def make():
        peers.append(Peer(library))
        return peers[-1]

    yield make
    for peer in peers:
        peer.kill()


@pytest.fixture
def pair(new_peer):
    """Two processes with UCX, and in each an endpoint to the other: token 1 to token 2."""
    near, far = new_peer(), new_peer()
    near.address, far.address = near.start(), far.start()
    join(near, far, 1, 2)
    return near, far


def join(near, far, near_token, far_token):
    near(f"connect({far.address!r}, {near_token}, {far_token})")
    far(f"connect({near.address!r}, {far_token}, {near_token})")
