"""A client of the benchmarks in a Python of its own: ``python foreign.py SCHEME MODULE``.

Its arrays are those of the module, numpy or cupy.

Prints the pids of itself and of its peer; then answers each line, a verb of `CommSession`, the
bytes of its array (0: none) and a count, with the seconds that it took.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys

from sessions import CommSession


async def serve(scheme: str, module: str) -> None:
    options = {"uvloop": False, "security": None, "sizes": [0], "on_gpu": module == "cupy"}
    ones = importlib.import_module(module).ones
    session = CommSession(scheme, argparse.Namespace(**options))
    try:
        await session.open()
        print(json.dumps(session.pids), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            verb, nbytes, count = json.loads(line)
            arguments = [ones(nbytes, "u1")] if nbytes else []
            print(json.dumps(await getattr(session, verb)(*arguments, count)), flush=True)
    finally:
        session.kill()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
