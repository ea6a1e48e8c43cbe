"""Files and commands of the pages of docs/howto/deploy, run as a user would run them.

A block that begins with ```` ```python title="check.py" ```` is saved as that file, unchanged.
In commands, tests replace the names of hosts and interfaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..conformance.conftest import unused_port
from ..docs.blocks import Block, blocks

WITNESS = Path(__file__).parent / "witness"
SECONDS = 240  # of any program; two busy cores need a tenth of it
ARRAY_MB = 80  # the array that check.py fetches
# What an activated environment sets, and an end for each wait of Dask.
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "60s",
    "DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE": "False",  # what jobs ask for is not there
    "PYTHONUNBUFFERED": "1",
}


def _blocks(page: str) -> list[Block]:
    return [block for block in blocks() if block.page == f"docs/{page}"]


def files_of(page: str) -> dict[str, str]:
    """Give the files that a page asks its readers to save, by name."""
    return {block.title: block.text for block in _blocks(page) if block.title}


def commands_of(page: str) -> list[str]:
    """Give the lines of all commands of a page, without comments."""
    found = [block for block in _blocks(page) if block.language == "sh" and not block.title]
    lines = "".join(block.text for block in found).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+# .*", "", line).strip() for line in lines) if line]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(2 * SECONDS))


class Folder:
    """An empty folder in which files of the pages are saved, and programs run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = {**os.environ, **ENVIRONMENT}
        self.save("howto/deploy.md")

    def save(self, page: str) -> None:
        """Save all files of a page."""
        for name, text in files_of(page).items():
            (self.path / name).write_text(text)

    def make_key(self) -> Path:
        """Make a key in a home of its own, and have all programs require one."""
        home = self.path / "home"
        self.environment.update(HOME=str(home), DASK_FABRIC__AUTH__REQUIRE="true")
        self.run("dask", "fabric", "key", "create")
        return home / ".config" / "dask" / "fabric.key"

    def run(self, *command: str | Path, **environment: str) -> str:
        """Run a command until it ends; give what it printed, with its errors."""
        with self.start(*command, **environment) as process:
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                pytest.fail(f"{command} did not end:\n{self.logs()}")
        output = self.log.read_text()
        assert process.returncode == 0, self.logs()
        return output

    def logs(self) -> str:
        """Give the last lines of all that ran here."""
        return "\n".join(log.read_text()[-4000:] for log in sorted(self.path.glob("*.log")))

    @contextlib.contextmanager
    def start(self, *command: str | Path, **environment: str) -> Iterator[subprocess.Popen]:
        """Run a command during a block, and end it then, with all that it has started."""
        self.log = self.path / f"{len(list(self.path.glob('*.log')))}.log"
        with self.log.open("w") as log:
            process = subprocess.Popen(
                [*command],
                cwd=self.path,
                env={**self.environment, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen) -> None:
    """Ask a session's leader to end, then kill what is left of its processes."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def free_port() -> Callable[[], int]:
    return unused_port


def program(name: str, package: str) -> str:
    """Give the path of a program; skips with the name of its Debian package."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"no {name} on this host: apt-get install {package}")
    return found


def assert_all_over_fabric(output: str, workers: int, path: str = "") -> None:
    """Hold the output of check.py to addresses of fabric, and to traffic that went over it.

    Parameters
    ----------
    output : str
    workers : int
        How many there are.
    path : str
        One that carried the array, or any.
    """
    addresses = re.findall(r"^(scheduler|worker) (\S+)$", output, re.M)
    roles = [role for role, _ in addresses]
    assert roles.count("scheduler") == 1 and roles.count("worker") == workers, output
    assert all(address.startswith("fabric://") for _, address in addresses), output
    megabytes = {way: float(mb) for mb, way in re.findall(r"^(\S+) MB by (\w+)$", output, re.M)}
    carried = megabytes.get(path, 0) if path else sum(megabytes.values())
    assert carried >= ARRAY_MB, output


@pytest.fixture
def witnessed(folder: Folder) -> Callable[[], list[dict]]:
    """A function that gives the statistics of all Python processes that ran here and ended."""
    seen = folder.path / "witness"
    seen.mkdir()
    folder.environment["PYTHONPATH"] = str(WITNESS)
    folder.environment["DASK_FABRIC_TEST_WITNESS"] = str(seen)
    return lambda: [json.loads(file.read_text()) for file in seen.iterdir()]
