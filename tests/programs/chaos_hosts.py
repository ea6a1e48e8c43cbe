"""Hosts made of network namespaces, and a Dask cluster on them, for ``chaos.py``."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from benchmarks.networks import ip
from tests.conftest import NO_DASHBOARD_OPTIONS

PATIENCE_SECONDS = 120
NETWORK = "10.79.0"
CLONE_NEWNET = 0x40000000


def until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> bool:
    """Wait until *condition* is true; give whether it became so in time."""
    deadline = time.monotonic() + seconds
    while not (met := bool(condition())) and time.monotonic() < deadline:
        time.sleep(0.2)
    return met


class Host:
    """A namespace on the bridge, whose processes see a boot id and a ``/dev/shm`` of their own.

    By the boot id, processes tell whether they share a host. Thus memory is shared within a
    namespace, and everything else travels by TCP.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self.name, self.address = f"chaos{os.getpid()}-{number}", f"{NETWORK}.{number}"
        self.port = f"port{number}"  # of the bridge
        self.shm, self._boot_id = folder / f"shm{number}", folder / f"boot_id{number}"
        self.shm.mkdir()
        self._boot_id.write_text(f"{uuid.uuid4()}\n")

    def connect(self) -> None:
        """Join the bridge, which is in the current namespace."""
        ip("link", "add", self.port, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self.port, "master", "bridge", "up")
        ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")

    def start(self, log: Path, environment: dict[str, str], *words: str) -> subprocess.Popen:
        """Run a program of this environment's Python; its output is added to *log*."""
        program = [sys.executable, "-m", *words]
        script = (
            f"mount --bind {shlex.quote(str(self._boot_id))} /proc/sys/kernel/random/boot_id && "
            f"mount --bind {shlex.quote(str(self.shm))} /dev/shm && exec {shlex.join(program)}"
        )
        with log.open("a") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, "sh", "-c", script],
                env={**os.environ, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the program only
            )

    def pids(self) -> list[int]:
        command = ["ip", "netns", "pids", self.name]
        return [int(pid) for pid in subprocess.check_output(command, text=True).split()]


@contextlib.contextmanager
def hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    """Make hosts ``.1``, ``.2``, ..., and move this thread to the namespace of their bridge."""
    with contextlib.ExitStack() as stack:
        made = [Host(number, folder) for number in range(count + 1)]
        for host in made:
            ip("netns", "add", host.name)
            stack.callback(ip, "netns", "del", host.name)
            ip("-n", host.name, "link", "set", "lo", "up")
        with open(f"/run/netns/{made[0].name}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        ip("link", "add", "bridge", "type", "bridge")
        ip("address", "add", f"{NETWORK}.254/24", "dev", "bridge")
        ip("link", "set", "bridge", "up")
        for host in made[1:]:
            host.connect()
        yield made[1:]


class Nanny:
    """A ``dask worker`` with its nanny, whose worker is a child process."""

    def __init__(self, host: Host, process: subprocess.Popen) -> None:
        self.host, self.process = host, process

    def worker_pid(self) -> int | None:
        """Give the process of the worker, if there is one now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                if any("spawn_main" in word for word in child.cmdline()):
                    return child.pid
        return None


class Cluster:
    """A scheduler on the first host, and two workers on each other one."""

    def __init__(self, hosts: list[Host], scheme: str, folder: Path, environment: dict) -> None:
        self.hosts, self._folder, self._environment = hosts, folder, environment
        self.address = f"{scheme}://{hosts[0].address}:8786"
        self.unexpected: list[str] = []  # ends of processes
        words = ["distributed.cli.dask_scheduler", "--host", f"{scheme}://{hosts[0].address}"]
        self.scheduler = hosts[0].start(
            folder / "scheduler.log", environment, *words, *NO_DASHBOARD_OPTIONS
        )
        self.nannies = {
            f"{host.name}-{letter}": self._nanny(f"{host.name}-{letter}", host)
            for host in hosts[1:]
            for letter in "ab"
        }

    def _nanny(self, name: str, host: Host) -> Nanny:
        process = host.start(
            self._folder / f"{name}.log",
            self._environment,
            *("distributed.cli.dask_worker", self.address, "--nanny", "--nthreads", "1"),
            *("--host", host.address, "--memory-limit", "2GB", "--no-dashboard"),
            *("--local-directory", str(self._folder / "scratch"), "--death-timeout", "60"),
        )
        return Nanny(host, process)

    def tend(self) -> int:
        """Start what has ended anew, as deployers do; give how many nannies that were."""
        ended = [name for name, nanny in self.nannies.items() if nanny.process.poll() is not None]
        for name in ended:
            nanny = self.nannies[name]
            self._judge(name, nanny.process.returncode)
            self.nannies[name] = self._nanny(name, nanny.host)
        return len(ended)

    def signal_worker(self, name: str, number: int) -> bool:
        """Send a signal to a worker process; give whether it was there."""
        pid = self.nannies[name].worker_pid()
        with contextlib.suppress(ProcessLookupError):
            if pid is not None:
                os.kill(pid, number)
                return True
        return False

    def _judge(self, name: str, returncode: int) -> None:
        if returncode < 0 and returncode not in (-signal.SIGKILL, -signal.SIGTERM):
            self.unexpected.append(f"{name} ended by signal {-returncode}")

    def close(self) -> None:
        """End all processes; those that must be killed are `unexpected`."""
        named = {name: nanny.process for name, nanny in self.nannies.items()}
        for group in (named, {"scheduler": self.scheduler}):
            for process in group.values():
                process.terminate()
            for name, process in group.items():
                try:
                    self._judge(name, process.wait(PATIENCE_SECONDS / 2))
                except subprocess.TimeoutExpired:
                    self.unexpected.append(f"{name} did not end")
        for host in self.hosts:
            if not until(lambda host=host: not host.pids(), PATIENCE_SECONDS / 4):
                self.unexpected.append(f"left on {host.name}: processes {host.pids()}")
            for pid in host.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            # Semaphores of multiprocessing belong to processes that were killed.
            left = [file.name for file in host.shm.iterdir() if not file.name.startswith("sem.mp")]
            if left:
                self.unexpected.append(f"left in /dev/shm of {host.name}: {left}")
