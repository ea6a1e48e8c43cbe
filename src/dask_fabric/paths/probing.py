"""Running a program that tries a library out, in a process of its own and for a bounded time."""

from __future__ import annotations

import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

# A healthy probe takes 0.03 to 0.5 s. Slow file systems and drivers that wake GPUs take seconds.
PROBE_SECONDS = 10.0
OUTPUT_BYTES_LIMIT = 1 << 20


def output_of(
    program: Path, arguments: tuple[str, ...], variables: Mapping[str, str], seconds: float
) -> bytes:
    """Run a Python program, and give what it prints.

    Parameters
    ----------
    program : Path
    arguments : tuple of str
        They are followed by the seconds after which it must end itself, if its parent has died.
    variables : mapping of str to str
        Its environment.
    seconds : float
        Until it is killed.

    Raises
    ------
    OSError
        It cannot be started, failed, printed too much, or did not end in time.
    """
    with subprocess.Popen(
        [sys.executable, "-I", "-S", program, *arguments, str(math.ceil(seconds) + 1)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(variables),
    ) as child:
        assert child.stdout is not None  # a pipe
        try:
            output = _read_bounded(child.stdout.fileno(), seconds)
            if child.wait(seconds) != 0:
                raise OSError(f"it ended with status {child.returncode}")
        except subprocess.TimeoutExpired as exc:
            raise OSError(f"no end within {seconds} s") from exc
        finally:
            child.kill()
    return output


def _read_bounded(fd: int, seconds: float) -> bytes:
    output, deadline = b"", time.monotonic() + seconds
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(fd, 65536)
        output += chunk
        if not chunk:
            return output
        if len(output) > OUTPUT_BYTES_LIMIT:
            raise OSError(f"more than {OUTPUT_BYTES_LIMIT} bytes of output")
    raise OSError(f"no answer within {seconds} s")
