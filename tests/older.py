"""A process of this version and one of an older commit talk to each other, in both directions.

The older package is built from git, into an environment of its own beside that of the tests::

    python tests/older.py                # the commit before the engine was rebuilt
    python tests/older.py v1.2 --python .venv/bin/python
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEFORE = "1e659c1"  # the last commit before the engine was rebuilt
SCHEMES = ("fabric", "fabric+tcp", "fabric+ucx")
PATIENCE_SECONDS = 60

SERVER = """
import asyncio, sys
from distributed.comm import listen
from distributed.protocol import to_serialize
async def main():
    async def serve(comm):
        try:
            while True:
                told = await comm.read()
                await comm.write({"x": to_serialize(told["x"]), "text": told["text"]})
        except OSError:
            pass
    async with listen(sys.argv[1], serve) as listener:
        print(listener.contact_address, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
asyncio.run(main())
"""
CLIENT = """
import asyncio, sys
import numpy as np
from distributed.comm import connect
from distributed.protocol import to_serialize
async def main():
    comm = await connect(sys.argv[1])
    for count in (0, 10, 1000, 20_000, 300_000, 4_000_000):
        for text in ("", "x" * count):
            await comm.write({"x": to_serialize(np.arange(count)), "text": text})
        for text in ("", "x" * count):
            told = await comm.read()
            assert told["text"] == text and (np.asarray(told["x"]) == np.arange(count)).all()
    print(comm.paths["host"], comm.control_stream, flush=True)
    await comm.close()
asyncio.run(main())
"""


def build(commit: str, python: str) -> Path:
    """Give an interpreter with the package of *commit*, and all other packages of *python*."""
    folder = ROOT / f".venv-older-{commit}"
    own = folder / "bin/python"
    if (folder / "done").exists():
        return own
    subprocess.run([python, "-m", "venv", folder], check=True)
    paths = subprocess.check_output(
        [python, "-c", "import site; print(site.getsitepackages()[0])"], text=True
    ).strip()
    # The first folder wins: the older package, then the packages of the tests.
    (there,) = folder.glob("lib/python*/site-packages")
    with tempfile.TemporaryDirectory() as source:
        archive = Path(source, "source.tar")
        subprocess.run(["git", "archive", "-o", archive, commit], cwd=ROOT, check=True)
        with tarfile.open(archive) as file:
            file.extractall(source, filter="data")
        command = [own, "-m", "pip", "install", "--quiet", "--no-deps", source]
        subprocess.run(command, check=True)
    (there / "beside.pth").write_text(paths + "\n")
    (folder / "done").touch()
    return own


def talk(server: str, client: str, scheme: str, unix: bool) -> str:
    """Have two processes exchange messages, and give the path and the stream in use."""
    environment = {
        **os.environ,
        "DASK_FABRIC__UNIX_SOCKETS": str(unix).lower(),
        "DASK_FABRIC__UCX__ENABLED": str(scheme == "fabric+ucx").lower(),
        "PYTHONSAFEPATH": "1",
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [server, "-c", SERVER, f"{scheme}://127.0.0.1:0"]
    with subprocess.Popen(command, env=environment, **pipes) as listening:
        try:
            address = listening.stdout.readline().strip()
            done = subprocess.run(
                [client, "-c", CLIENT, address],
                env=environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE_SECONDS,
            )
        finally:
            listening.kill()
    return done.stdout.strip() if done.returncode == 0 else done.stderr[-1000:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", nargs="?", default=BEFORE)
    parser.add_argument("--python", default=sys.executable, help="that has this version")
    parser.add_argument("--no-ucx", action="store_true", help="where there is no UCX")
    options = parser.parse_args()
    older = str(build(options.commit, options.python))
    is_good = True
    for scheme, unix in product(SCHEMES, (True, False)):
        if scheme == "fabric+ucx" and options.no_ucx:
            continue
        expected = talk(options.python, options.python, scheme, unix)
        for name, server, client in (
            ("older server", older, options.python),
            ("older client", options.python, older),
        ):
            found = talk(server, client, scheme, unix)
            is_good &= found == expected and len(found.split()) == 2
            print(f"{scheme:<11} {'unix' if unix else 'tcp':<5} {name}: {found}", flush=True)
    print("as this version talks to itself" if is_good else f"NOT as: {expected}")
    return not is_good


if __name__ == "__main__":
    sys.exit(main())
