"""Benchmark programs of others, of which two processes run: a server and its client."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

_PATIENCE_SECONDS = 120.0
_START_SECONDS = 10.0
_END_SECONDS = 5.0


def figure(
    server_command: Sequence[str],
    client_command: Sequence[str],
    environment: Mapping[str, str],
    read: Callable[[str], float | None],
) -> float | None:
    """Run both, the client until the server listens; give what *read* finds in its output.

    Returns None if that is nothing, or if a program does not run.
    """
    null = subprocess.DEVNULL
    with subprocess.Popen(server_command, env=environment, stdout=null, stderr=null) as server:
        try:
            return _ask(client_command, environment, server, read)
        finally:
            _end(server)


def _end(server: subprocess.Popen) -> None:
    """End a server; one that is killed leaves its shared memory behind."""
    server.terminate()
    try:
        server.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()


def _ask(
    command: Sequence[str],
    environment: Mapping[str, str],
    server: subprocess.Popen,
    read: Callable[[str], float | None],
) -> float | None:
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            client = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_PATIENCE_SECONDS
            )
        except subprocess.TimeoutExpired:
            return None
        found = read(client.stdout) if client.returncode == 0 else None
        if found is not None:
            return found
        time.sleep(0.05)
    return None


def last_line(output: str) -> str:
    """Give the last line that is not empty."""
    return output.strip().rpartition("\n")[2]


def with_library(library: str) -> dict[str, str]:
    """Give an environment in which programs find the folder of this library first."""
    # What is there is kept: it may lead to CUDA.
    folders = (os.path.dirname(library), os.environ.get("LD_LIBRARY_PATH"))
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders))}


def free_port() -> int:
    """Give a port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
