"""The self-test: tries each path between two new processes of this host."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import dask.config

from dask_fabric import providers
from dask_fabric.cli.doctor.pair import PATHS

COMMAND = (sys.executable, "-m", "dask_fabric.cli.doctor.pair", "measure")
# The whole test takes two or three seconds, unless something hangs.
_PATIENCE_SECONDS = 15.0


@dataclass(frozen=True)
class PathResult:
    """The result of one path.

    Attributes
    ----------
    reason : str
        Why it is not in use, or "".
    instead : str
        The path for large frames on which the pair has agreed, if it is another one.
    """

    path: str
    works: bool
    reason: str = ""
    bandwidth_bytes_per_second: float | None = None
    round_trip_seconds: float | None = None
    instead: str = ""


class SelfTest:
    """A self-test that runs in the background, until `finish`.

    Parameters
    ----------
    command : sequence of str
        The program that tries the paths and prints a line for each.
    """

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        settings = dask.config.serialize(dask.config.global_config)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # The configuration is passed as by Dask's nannies. PYTHONSAFEPATH: modules in the
            # current folder must not shadow Python's own.
            env={**os.environ, "DASK_INTERNAL_INHERIT_CONFIG": settings, "PYTHONSAFEPATH": "1"},
            start_new_session=True,  # so that `stop` kills its child, too
        )

    def finish(self, patience_seconds: float = _PATIENCE_SECONDS) -> tuple[PathResult, ...]:
        """Wait for the end, at most this long, and give the result of every path."""
        try:
            output, errors = self._process.communicate(timeout=patience_seconds)
            ended = how_it_ended(self._process.returncode, errors)
        except subprocess.TimeoutExpired:
            self.stop()
            output, _ = self._process.communicate()
            ended = f"it was stopped after {patience_seconds:.0f} seconds"
        except BaseException:
            self.stop()
            raise
        return read_results(output, f"the self-test gave no result: {ended}")

    def stop(self) -> None:
        """Kill all processes of the self-test."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def how_it_ended(status: int, errors: str) -> str:
    """Describe the end of a process: its signal or status, and the last line on its stderr."""
    complaint = (errors.strip().splitlines() or [""])[-1]
    if status < 0:
        return f"{signal.Signals(-status).name} {complaint}".strip()
    return complaint or f"exit status {status}"


def read_results(output: str, missing: str) -> tuple[PathResult, ...]:
    """Parse the lines of JSON that the self-test printed.

    Parameters
    ----------
    output : str
        Its output, possibly with lines from libraries; the last line may be incomplete.
    missing : str
        The reason for paths without a line.
    """
    found = {}
    for line in output.splitlines():
        with contextlib.suppress(ValueError, TypeError):
            one = json.loads(line)
            found[one["path"]] = PathResult(works="reason" not in one, **{"reason": "", **one})
    results = (found.get(path) or PathResult(path, False, missing) for path in PATHS)
    return tuple(_with_complaint(result, output) for result in results)


def _with_complaint(result: PathResult, output: str) -> PathResult:
    provider = providers.by_name().get(result.path)
    if provider is None or result.works or not (complaint := provider.complaint(output)):
        return result
    return replace(result, reason=f"{result.reason}. {provider.title}: {complaint}")
