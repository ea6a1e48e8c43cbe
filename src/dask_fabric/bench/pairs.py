"""Two processes of this host that measure one protocol between them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config
from distributed.security import Security

from dask_fabric import providers
from dask_fabric.errors import PairError

_AGENT = str(Path(__file__).with_name("agent.py"))
# Not `python agent.py`: the modules beside it must not shadow Python's own.
_BOOT = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
_ERROR = re.compile(r"[\w.]*(Error|Exception|Interrupt|Exit|Warning)\b")
_START_SECONDS = 60.0
_END_SECONDS = 10.0
ANSWER_SECONDS = 300.0

Hog = tuple[bool, bool]  # on the asking, and on the answering side
NO_HOG: Hog = (False, False)


@dataclass(frozen=True)
class Protocol:
    """A column of the tables: a scheme, and the Python that has it.

    Attributes
    ----------
    name : str
        The name of the column.
    scheme : str
        Without ``://``.
    python : str
        The interpreter of both processes.
    """

    name: str
    scheme: str
    python: str = sys.executable

    @property
    def is_encrypted(self) -> bool:
        """Whether the scheme needs certificates."""
        return self.scheme.endswith("tls")

    @property
    def is_own(self) -> bool:
        """Whether it runs under this Python."""
        return self.python == sys.executable


@dataclass(frozen=True)
class Surroundings:
    """Settings for all measuring processes.

    Attributes
    ----------
    security : dict, optional
        Certificates as keywords of `Security`, for schemes that need them.
    uvloop : bool
        Whether they run on uvloop.
    module : str
        The module of the arrays: ``numpy``, or ``cupy`` for GPU memory.
    environment : dict of str to str
        Additional environment variables.
    """

    security: dict[str, Any] | None = None
    uvloop: bool = False
    host: str = "127.0.0.1"
    module: str = "numpy"
    environment: dict[str, str] | None = None


def temporary_security() -> dict[str, Any]:
    """Make certificates for this run, as keywords of `Security`."""
    security = Security.temporary()
    names = [
        "tls_ca_file",
        *(f"tls_{r}_{k}" for r in ("client", "scheduler", "worker") for k in ("cert", "key")),
    ]
    return {"require_encryption": True, **{name: getattr(security, name) for name in names}}


class Program:
    """A child process that answers lines of JSON with lines of JSON.

    Parameters
    ----------
    name : str
        Its name in errors.
    command : sequence of str
        What to run.
    config : object
        The content of its first line of input.
    """

    def __init__(
        self, name: str, command: Sequence[str], config: Any, environment: dict[str, str]
    ) -> None:
        self._name = name
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        assert self._process.stdin is not None and self._process.stdout is not None  # pipes
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.pid = self._process.pid
        self._write(config)

    def _write(self, content: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended: `read` raises the error
            self._stdin.write(json.dumps(content) + "\n")
            self._stdin.flush()

    def read(self, patience_seconds: float) -> Any:
        """Read the next answer.

        Raises
        ------
        PairError
            The program has ended, or did not answer in time and was killed.
        """
        expired = threading.Event()
        late = threading.Timer(patience_seconds, self._expire, [expired])
        late.start()
        try:
            line = self._stdout.readline()
        finally:
            late.cancel()
        if not line:
            self.kill()
            if expired.is_set():
                raise PairError(f"{self._name}: no answer within {patience_seconds:g} seconds")
            raise PairError(f"{self._name}: {self._complaint() or 'it ended without an error'}")
        return json.loads(line)

    def _expire(self, expired: threading.Event) -> None:
        expired.set()
        self._process.kill()

    def ask(self, question: Any, patience_seconds: float) -> Any:
        """Write a line, and read the answer."""
        self._write(question)
        return self.read(patience_seconds)

    def _complaint(self) -> str:
        """Give the last error that it printed, on one line."""
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or [""]
        starts = [i for i, line in enumerate(lines) if _ERROR.match(line)] or [len(lines) - 1]
        return " ".join(" ".join(lines[starts[-1] :]).split())

    def pause(self) -> None:
        """Stop it, until `go_on`."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Let it end by itself; kill it if it does not."""
        self.go_on()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._stdout.close()
        self._errors.close()

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()


class Pair:
    """A server and a client of one protocol.

    They are stopped (SIGSTOP) while not in use: some protocols, such as distributed-ucxx, keep a
    CPU busy when idle, and would disturb the measurement of others.

    Attributes
    ----------
    name : str
        The column of the tables.
    pids : list of int
        The asking and the answering process.
    """

    def __init__(self, protocol: Protocol, around: Surroundings) -> None:
        self.name = protocol.name
        variables = child_environment(around)
        config = {
            "security": around.security if protocol.is_encrypted else None,
            "uvloop": around.uvloop,
            "module": around.module,
        }
        command = [protocol.python, "-c", _BOOT, _AGENT]
        listening = {**config, "scheme": protocol.scheme, "host": around.host}
        self._server = Program(f"{self.name}://", command, listening, variables)
        try:
            config["address"] = self._server.read(_START_SECONDS)
            self._client = Program(f"{self.name}://", command, config, variables)
        except BaseException:
            self._server.end()
            raise
        try:
            self._client.read(_START_SECONDS)
        except BaseException:
            self.close()
            raise
        self.pids = [self._client.pid, self._server.pid]
        self._pause()

    def can(self, verb: str, arguments: dict[str, Any]) -> bool:
        """Whether this can be measured here; comms support everything."""
        return True

    def ask(self, verb: str, hog: Hog = NO_HOG, **arguments: Any) -> dict[str, Any]:
        """Call `agent.Asker.do` in the client."""
        self._server.go_on()
        self._client.go_on()
        try:
            return self._client.ask([verb, arguments, hog], ANSWER_SECONDS)
        finally:
            self._pause()

    def _pause(self) -> None:
        self._client.pause()
        self._server.pause()

    def close(self) -> None:
        """End both processes."""
        self._client.end()
        self._server.end()


def child_environment(around: Surroundings) -> dict[str, str]:
    """Give an environment that passes on Dask's configuration, and keeps libraries off stdout."""
    return {
        **os.environ,
        "DASK_INTERNAL_INHERIT_CONFIG": dask.config.serialize(dask.config.global_config),
        **providers.environment(),
        "PYTHONSAFEPATH": "1",
        **(around.environment or {}),
    }
