"""Break a Dask cluster in random ways while it computes, and check all of its results.

    python -m tests.programs.chaos --time 10m --seed 7 --scheme fabric

A scheduler and four workers under nannies run in network namespaces, two workers in each, so that
arrays travel by memory within a namespace and by TCP between them. A client computes; each result
is compared bit by bit. Meanwhile faults are injected one at a time, in an order that follows from
the seed. After each one, all workers must come back, and a workload must succeed.

Errors that Dask raises for such faults over any protocol (a scattered array or an actor is lost
with its worker, a client must reconnect) are counted, and the workload is tried again. All other
errors, wrong results and results that never arrive are failures.

At the end, every workload runs once more without faults. Then client, scheduler and workers must
have no more descriptors, threads, memory and jobs than after the first workloads, and nothing may
be left of them after they were closed. Needs root. Run from the root of the repository.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import dask
from benchmarks.networks import ip
from dask.utils import parse_timedelta
from distributed import Client
from tests.programs import chaos_work as work
from tests.programs.chaos_hosts import PATIENCE_SECONDS, Cluster, hosts, until

ROOT = Path(__file__).parents[2]
ATTEMPT_COUNT = 20  # of one workload
PAUSE_SECONDS = (1, 4)  # between faults
HURT_SECONDS = (2, 8)  # as long as most faults last
LONG_HURT_SECONDS = 25  # beyond the limits below
# Short limits, so that Dask notices a fault while the next workload waits for it.
CONFIG = {
    "distributed.comm.timeouts.connect": "20s",
    "distributed.comm.timeouts.tcp": "15s",
    "distributed.scheduler.allowed-failures": 100,
    "distributed.scheduler.worker-ttl": "20s",
    "distributed.deploy.lost-worker-timeout": "10s",
    "distributed.worker.memory.terminate": False,
    "distributed.admin.low-level-log-length": 1000,
}


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Faults(threading.Thread):
    """Injects one fault after the other until it is stopped."""

    def __init__(self, cluster: Cluster, run: Run, key_file: Path | None) -> None:
        super().__init__(name="faults")
        self.cluster, self.run_, self._key_file = cluster, run, key_file
        self._rng = random.Random(f"faults {run.seed}")
        self.stopping = threading.Event()
        self.injected: collections.Counter[str] = collections.Counter()
        self.survived: collections.Counter[str] = collections.Counter()
        self.restarted_count = 0
        self.failures: list[str] = []
        self._kinds = {
            "worker killed": self._kill_worker,
            "worker frozen": self._freeze_worker,
            "nanny killed": self._kill_nanny,
            "link cut": self._cut_link,
            "link slowed": self._slow_link,
            "connections reset": self._reset_connections,
            **({"key rotated": self._rotate_key} if key_file else {}),
        }

    def run(self) -> None:
        while not self.stopping.wait(self._rng.uniform(*PAUSE_SECONDS)):
            kind = self._rng.choice(list(self._kinds))
            try:
                what = self._kinds[kind]()
            except Exception as error:
                self.failures.append(f"{kind}: not injected: {error!r}")
                continue
            if what is None:  # nothing there to break, or the kernel cannot
                continue
            self.injected[kind] += 1
            say(f"{kind}: {what}")
            if self.recovered():
                self.survived[kind] += 1
            else:
                self.failures.append(f"{kind}: no recovery within {PATIENCE_SECONDS} s")

    def recovered(self) -> bool:
        """Wait until all workers are back, and the workload after the current one is right."""
        ended = self.run_.right_count + 2

        def is_whole() -> bool:
            self.restarted_count += self.cluster.tend()
            return self.run_.worker_count() == len(self.cluster.nannies) and (
                self.stopping.is_set() or self.run_.right_count >= ended
            )

        return until(is_whole, 2 * PATIENCE_SECONDS)

    def _hurt(self) -> None:
        is_long = self._rng.random() < 0.2
        time.sleep(LONG_HURT_SECONDS if is_long else self._rng.uniform(*HURT_SECONDS))

    def _kill_worker(self) -> str | None:
        name = self._rng.choice(list(self.cluster.nannies))
        return self.cluster.signal_worker(name, signal.SIGKILL) and name

    def _freeze_worker(self) -> str | None:
        name = self._rng.choice(list(self.cluster.nannies))
        if not self.cluster.signal_worker(name, signal.SIGSTOP):
            return None
        self._hurt()
        self.cluster.signal_worker(name, signal.SIGCONT)
        return name

    def _kill_nanny(self) -> str:
        name = self._rng.choice(list(self.cluster.nannies))
        self.cluster.nannies[name].process.kill()
        self.cluster.nannies[name].process.wait()
        return name

    def _cut_link(self) -> str:
        host = self._rng.choice(self.cluster.hosts)
        ip("link", "set", host.port, "down")
        self._hurt()
        ip("link", "set", host.port, "up")
        return host.name

    def _slow_link(self) -> str:
        host, rate = self._rng.choice(self.cluster.hosts), self._rng.choice([2, 20, 100])
        way, prefix, device = self._rng.choice(
            [("to", ["tc"], host.port), ("from", ["tc", "-n", host.name], "eth0")]
        )
        shape = ["tbf", "rate", f"{rate}mbit", "burst", "64kb", "latency", "400ms"]
        subprocess.run([*prefix, "qdisc", "add", "dev", device, "root", *shape], check=True)
        self._hurt()
        subprocess.run([*prefix, "qdisc", "del", "dev", device, "root"], check=True)
        return f"{way} {host.name}, {rate} Mbit/s"

    def _reset_connections(self) -> str | None:
        host = self._rng.choice(self.cluster.hosts)
        command = ["ip", "netns", "exec", host.name, "ss", "-K", "-Htn", "state", "established"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        count = len(done.stdout.splitlines())  # those that the kernel has reset
        return f"{count} of {host.name}" if count else None

    def _rotate_key(self) -> str:
        command = [sys.executable, "-m", "dask", "fabric", "key", "rotate", "--keep", "60s"]
        subprocess.run(
            [*command, "--file", str(self._key_file)], check=True, stdout=subprocess.DEVNULL
        )
        return str(self._key_file)


class Run:
    """The workloads of a client, one after the other."""

    def __init__(self, address: str, seed: int, folder: Path) -> None:
        self.address, self.seed, self._folder = address, seed, folder
        self._rng = random.Random(f"work {seed}")
        self.client = Client(address, timeout=60)  # also of connects to workers that have gone
        self.right_count = self.client_count = 0
        self.seconds: dict[str, list[float]] = collections.defaultdict(list)
        self.errors: collections.Counter[tuple[str, str]] = collections.Counter()
        self.failures: list[str] = []

    def worker_count(self) -> int:
        """Ask the scheduler, in whichever thread; -1 if it cannot be reached."""
        client = self.client
        try:
            return len(client.sync(client.scheduler.ncores, workers=None, callback_timeout=10))
        except Exception:
            return -1

    def one(self, workload) -> bool:
        """Run a workload until its result is right; false if it cannot be."""
        name, begin = workload.__name__, time.perf_counter()
        for _ in range(ATTEMPT_COUNT):
            try:
                with work.limited():
                    self._reconnect()
                    workload(self.client, self._rng)
            except Exception as error:
                if not work.is_of_fault(error):
                    self.failures.append(f"{name}: {error!r}")
                    say(traceback.format_exc())
                    self._dump()
                    return False
                self.errors[name, type(error).__name__] += 1
                time.sleep(0.5)
            else:
                self.right_count += 1
                self.seconds[name].append(time.perf_counter() - begin)
                return True
        self.failures.append(f"{name}: {ATTEMPT_COUNT} attempts failed")
        return False

    def _reconnect(self) -> None:
        if self.client.status in ("running", "connecting"):
            return
        with contextlib.suppress(Exception):
            self.client.close(timeout=10)
        self.client = Client(self.address, timeout=60)
        self.client_count += 1

    def _dump(self) -> None:
        with contextlib.suppress(Exception), work.limited():
            self.client.dump_cluster_state(str(self._folder / "state"))

    def all_once(self) -> bool:
        return all([self.one(workload) for workload in work.WORKLOADS])

    def until(self, deadline: float, stopping: threading.Event) -> None:
        while time.monotonic() < deadline and not stopping.is_set():
            if not self.one(self._rng.choice(work.WORKLOADS)):
                return

    def leaks(self, before: dict[str, dict[str, int]]) -> list[str]:
        """Wait until no process holds more than before, and print it; give what is too much."""
        found: list[str] = []
        after: dict[str, dict[str, int]] = {}

        def is_at_rest() -> bool:
            with work.limited():
                after.clear()
                after.update(work.most_of_workers(work.holdings_of_all(self.client)))
            found[:] = [
                f"{name}: {key}: {before[name][key]:,} before, {of[key]:,} after"
                for name, of in after.items()
                for key, slack in work.SLACK.items()
                if of[key] > before[name][key] + slack
            ]
            return not found

        until(is_at_rest, PATIENCE_SECONDS / 2)
        print(f"\n{'before, after':<26}" + "".join(f"{name:>28}" for name in after))
        for key in work.SLACK:
            pairs = (f"{before[name][key]:,}, {of[key]:,}" for name, of in after.items())
            print(f"{key:<26}" + "".join(f"{pair:>28}" for pair in pairs))
        return found


def warnings(folder: Path) -> collections.Counter[str]:
    """Count the warnings and errors in all logs, with numbers left out."""
    found: collections.Counter[str] = collections.Counter()
    for log in folder.glob("*.log"):
        for line in log.read_text(errors="replace").splitlines():
            if match := re.search(r" - (\S+) - (WARNING|ERROR|CRITICAL) - (.*)", line):
                text = re.sub(r"'[^']*'|<[^>]*>|[0-9a-f]{8,}|[\d.:]*\d", "_", match[3])
                found[f"{match[1]}: {text[:150]}"] += 1
            elif re.match(r"Fatal Python error|Segmentation fault", line):
                found[line] += 1
    return found


def crashes(folder: Path) -> list[str]:
    """Give the lines of logs about processes that no fault has ended."""
    pattern = r"Fatal Python error|killed by (unknown )?signal (?!9|15)\d"
    return [
        f"{log.name}: {line}"
        for log in folder.glob("*.log")
        for line in log.read_text(errors="replace").splitlines()
        if re.search(pattern, line)
    ]


def report(run: Run, faults: Faults, folder: Path) -> None:
    print(f"\n{'fault':<20}{'injected':>10}{'survived':>10}")
    for kind, count in sorted(faults.injected.items()):
        print(f"{kind:<20}{count:>10}{faults.survived[kind]:>10}")
    print(f"\n{'workload':<20}{'right':>10}{'median s':>10}{'longest s':>10}  errors by Dask")
    for name, seconds in sorted(run.seconds.items()):
        errors = [f"{error} {n}" for (of, error), n in sorted(run.errors.items()) if of == name]
        figures = f"{statistics.median(seconds):>10.1f}{max(seconds):>10.1f}"
        print(f"{name:<20}{len(seconds):>10}{figures}  {', '.join(errors)}")
    print(f"\nnew clients {run.client_count}, new nannies {faults.restarted_count}")
    print("\nmost frequent warnings in the logs")
    for text, count in warnings(folder).most_common(15):
        print(f"{count:>6}  {text}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time", default="10m", help="of the faults, such as 90s or 10m")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--scheme", default="fabric")
    parser.add_argument("--key", action="store_true", help="with a key, which is rotated")
    parser.add_argument("--encrypt", action="store_true", help="by the key, which is rotated")
    options = parser.parse_args()
    say(f"seed {options.seed}, {options.scheme}://")
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    failures = chaos(options, folder)
    if failures:
        print("\nFAILED; the logs are in", folder, *failures, sep="\n  ")
    else:
        shutil.rmtree(folder)
        print("\nnothing wrong, and nothing left")
    return bool(failures)


def chaos(options: argparse.Namespace, folder: Path) -> list[str]:
    """Run everything; give what is wrong."""
    key_file = folder / "fabric.key" if options.key or options.encrypt else None
    config = dict(CONFIG)
    if key_file:
        create = [sys.executable, "-m", "dask", "fabric", "key", "create", "--file", str(key_file)]
        subprocess.run(create, check=True, stdout=subprocess.DEVNULL)
        config.update({"fabric.auth.key-file": str(key_file), "fabric.auth.require": True})
        config["fabric.auth.encrypt"] = options.encrypt
    with dask.config.set(config), hosts(3, folder) as made:
        environment = {
            "DASK_INTERNAL_INHERIT_CONFIG": dask.config.serialize(dask.config.config),
            "PYTHONPATH": str(ROOT),
            "PYTHONFAULTHANDLER": "1",
        }
        cluster = Cluster(made, options.scheme, folder, environment)
        try:
            failures = work_and_break(cluster, options, folder, key_file)
        finally:
            cluster.close()
    left = [host.name for host in made if Path("/run/netns", host.name).exists()]
    failures += [f"left: namespace {name}" for name in left]
    return failures + cluster.unexpected + crashes(folder)


def work_and_break(cluster, options, folder: Path, key_file: Path | None) -> list[str]:
    """Have the cluster compute while it is broken, and see what it keeps; give what is wrong."""
    run = Run(cluster.address, options.seed, folder)
    faults = Faults(cluster, run, key_file)
    try:
        if not until(lambda: run.worker_count() == len(cluster.nannies)) or not run.all_once():
            return ["the cluster did not work before any fault", *run.failures]
        with work.limited():
            before = work.most_of_workers(work.holdings_of_all(run.client))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: faults.stopping.set())
        faults.start()
        run.until(time.monotonic() + parse_timedelta(options.time), faults.stopping)
        say("the faults end")
        faults.stopping.set()
        faults.join()
        failures = [] if run.all_once() else ["not every workload works after the faults"]
        failures += run.leaks(before)
        report(run, faults, folder)
        return [*failures, *run.failures, *faults.failures]
    finally:
        faults.stopping.set()
        with contextlib.suppress(RuntimeError):  # it was not started
            faults.join()
        with work.limited():
            run.client.close()


if __name__ == "__main__":
    sys.exit(main())
