"""A real munged, in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PATIENCE_SECONDS = 30
COMMAND = shutil.which("munged", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Munged:
    """A daemon that runs.

    Attributes
    ----------
    socket : str
        The path of its socket.
    """

    def __init__(self, folder: Path, key: bytes, start: tuple[str, ...]) -> None:
        self.socket = str(folder / "socket")
        self._log = folder / "log"
        (folder / "key").touch(mode=0o600)
        (folder / "key").write_bytes(key)
        files = {"key-file": "key", "pid-file": "pid", "log-file": "own-log", "seed-file": "seed"}
        self._command = [
            *(*start, COMMAND, "--foreground", "--force", f"--socket={self.socket}"),
            *(f"--{option}={folder / name}" for option, name in files.items()),
        ]
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "MUNGE:" not in self.credential():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                pytest.skip(f"munged does not run here: {self._log.read_text()[-500:]}")
            time.sleep(0.02)

    def credential(self, *before: str, text: str = "") -> str:
        """Have a program make a credential; *before* it, what starts it as another user."""
        command = [*before, "munge", f"--socket={self.socket}", f"--string={text}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()

    def send(self, number: int) -> None:
        """Send a signal to the daemon, and to what has started it."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def stop(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.send(signal.SIGKILL)
            self._process.wait(PATIENCE_SECONDS)
            self._process = None


@contextlib.contextmanager
def running(key: bytes = b"k" * 1024, start: tuple[str, ...] = ()) -> Iterator[Munged]:
    """Run a munged. Skips where there is none.

    Parameters
    ----------
    key : bytes
        Its MUNGE key.
    start : tuple of str
        What to start it with.
    """
    if COMMAND is None or shutil.which("munge") is None:
        pytest.skip("no munged here: apt-get install munge libmunge2")
    # Not pytest's own folder: that is closed for other users.
    with tempfile.TemporaryDirectory(prefix="munged") as name:
        os.chmod(name, 0o755)
        daemon = Munged(Path(name), key, start)
        try:
            daemon.start()
            yield daemon
        finally:
            daemon.stop()
