"""A client in a process of its own, which connects, asks, and prints the answer or the error."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping

from distributed.comm.core import CommClosedError
from distributed.utils import wait_for

PATIENCE_SECONDS = 30
# It becomes another user after one attempt to connect, which imports what that user cannot read.
CLIENT = """
import asyncio, contextlib, os, sys
from distributed.comm import connect
from distributed.comm.registry import get_backend
from distributed.security import Security

async def main(user, address, ca, cert, key):
    security = Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key) if ca else None
    arguments = security.get_connection_args("client") if security else {}
    if user:
        with contextlib.suppress(OSError, ValueError):
            connector = get_backend(address.partition("://")[0]).get_connector()
            await connector.connect("localhost:9", **arguments)
        os.setgroups([])
        os.setuid(int(user))
    try:
        comm = await connect(address, timeout=float(os.environ["CONNECT_SECONDS"]), **arguments)
        await comm.write("ping")
        print(await comm.read())
        await comm.close()
    except (OSError, ValueError) as error:
        print(error)

asyncio.run(main(*sys.argv[1:]))
"""


async def echo(comm) -> None:
    with contextlib.suppress(CommClosedError):
        while True:
            await comm.write(await comm.read())


async def ask(
    address: str,
    security=None,
    variables: Mapping[str, str] | None = None,
    user: int | None = None,
) -> str:
    """Have a client in another process connect; give what it prints.

    Parameters
    ----------
    security : object, optional
        With the files of certificates to use.
    variables : mapping, optional
        Added to its environment.
    user : int, optional
        Another user, for root.
    """
    environment = {
        **os.environ,
        "DASK_FABRIC__TIMEOUTS__HANDSHAKE": "20s",
        "CONNECT_SECONDS": "20",
        **(variables or {}),
    }
    files = ("", "", "")
    if security is not None and security.use:
        files = (security.tls_ca_file, security.tls_client_cert, security.tls_client_key)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CLIENT, str(user or ""), address, *files),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    out, _ = await wait_for(process.communicate(), PATIENCE_SECONDS)
    return out.decode()
