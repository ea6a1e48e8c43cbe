"""The self-test: each path tried between two new processes of this host."""

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
# Each path has less than this and the whole takes two seconds or three, unless something hangs.
_PATIENCE_SECONDS = 15.0


@dataclass(frozen=True)
class PathResult:
    """What became of one path.

    Attributes
    ----------
    reason : str
        Why it is not in use; empty where it works.
    instead : str
        The path that the pair has agreed on for large frames where that is another one.
    """

    path: str
    works: bool
    reason: str = ""
    bandwidth_bytes_per_second: float | None = None
    round_trip_seconds: float | None = None
    instead: str = ""


class SelfTest:
    """A self-test that runs beside the caller, from its making until `finish`.

    Parameters
    ----------
    command : sequence of str
        The program that tries the paths, and prints a line for each.
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
            # As Dask's nannies hand on their configuration; and modules in the current folder
            # must not be taken for those of Python.
            env={**os.environ, "DASK_INTERNAL_INHERIT_CONFIG": settings, "PYTHONSAFEPATH": "1"},
            start_new_session=True,  # so that it can be ended with all that it has started
        )

    def finish(self, patience_seconds: float = _PATIENCE_SECONDS) -> tuple[PathResult, ...]:
        """Wait for the end, no longer than this, and give the result for every path."""
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
        """End all processes of the self-test."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def how_it_ended(status: int, errors: str) -> str:
    """Put the end of a process into words, with the last line of what it complained of."""
    complaint = (errors.strip().splitlines() or [""])[-1]
    if status < 0:
        return f"{signal.Signals(-status).name} {complaint}".strip()
    return complaint or f"exit status {status}"


def read_results(output: str, missing: str) -> tuple[PathResult, ...]:
    """Read the lines of JSON that the self-test printed.

    Parameters
    ----------
    output : str
        What it printed, and libraries with it; the last line may be cut short.
    missing : str
        The reason for paths that have no line.
    """
    found = {}
    for line in output.splitlines():
        with contextlib.suppress(ValueError, TypeError):
            told = json.loads(line)
            found[told["path"]] = PathResult(works="reason" not in told, **{"reason": "", **told})
    results = (found.get(path) or PathResult(path, False, missing) for path in PATHS)
    return tuple(_with_complaint(result, output) for result in results)


def _with_complaint(result: PathResult, output: str) -> PathResult:
    provider = providers.by_name().get(result.path)
    if provider is None or result.works or not (complaint := provider.complaint(output)):
        return result
    return replace(result, reason=f"{result.reason}. {provider.title}: {complaint}")
