"""A client of benchmarks/comm.py in a Python of its own: ``python foreign.py SCHEME``.

Prints the pids of itself and of its peer; then answers each line, a verb of `CommSession`, the
bytes of its array (0: none) and a count, with the seconds that it took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

import numpy as np

from sessions import CommSession


async def serve(scheme: str) -> None:
    session = CommSession(scheme, argparse.Namespace(uvloop=False, security=None, sizes=[0]))
    try:
        await session.open()
        print(json.dumps(session.pids), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            verb, nbytes, count = json.loads(line)
            arguments = [np.ones(nbytes, "u1")] if nbytes else []
            print(json.dumps(await getattr(session, verb)(*arguments, count)), flush=True)
    finally:
        session.kill()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
