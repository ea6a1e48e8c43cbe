"""A peer dies with a frame on offer, and another process gets its pid: what does the reader get?

Run as the first process of a pid namespace: ``unshare -pf --mount-proc python reused_pid.py MODE``.
With MODE ``other`` the new process has other bytes at the address of the frame, with ``empty`` it
has nothing there. A child that the peer forked behind Python's back still has its socket, so that
no end of the stream tells of its death. Prints how the read ended.
"""

import asyncio
import ctypes
import os
import signal
import sys
import time

import numpy as np
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol import to_serialize

PATIENCE_SECONDS = 20
libc = ctypes.CDLL(None)
frame = np.zeros(20_000_000, "u1")


async def offer_and_die(address: str, told: int) -> None:
    frame[:] = 1
    comm = await connect(address)
    await comm.write({"x": to_serialize(frame)})
    os.write(told, b"offered")
    await asyncio.sleep(0.5)  # so that it has left
    if libc.fork() == 0:
        libc.sleep(3600)
    os.kill(os.getpid(), signal.SIGKILL)


def successor_of(pid: int, mode: str) -> int:
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(pid - 1))
    if mode == "empty":
        return os.posix_spawn("/bin/sleep", ["sleep", "3600"], {})
    successor = os.fork()
    if successor == 0:
        frame[:] = 2
        time.sleep(3600)
    return successor


async def read_after_death(mode: str, peer: int, address_pipe: int, told: int) -> str:
    comms = asyncio.Queue()
    async with listen("fabric://127.0.0.1", comms.put) as listener:
        os.write(address_pipe, listener.contact_address.encode())
        comm = await comms.get()
        assert comm.paths["host"] == "cma"
        await asyncio.to_thread(os.read, told, 100)
        os.waitpid(peer, 0)
        assert successor_of(peer, mode) == peer
        try:
            message = await asyncio.wait_for(comm.read(), PATIENCE_SECONDS)
        except asyncio.TimeoutError:
            return "hangs"
        except CommClosedError:
            return "CommClosedError"
        return f"delivered {np.unique(np.asarray(message['x']))}"


def main() -> None:
    address_in, address_out = os.pipe()
    told_in, told_out = os.pipe()
    peer = os.fork()
    if peer == 0:
        address = os.read(address_in, 1000).decode()
        asyncio.run(offer_and_die(address, told_out))
    print(asyncio.run(read_after_death(sys.argv[1], peer, address_out, told_in)), flush=True)
    os._exit(0)  # and with the first process the namespace ends


if __name__ == "__main__":
    main()
