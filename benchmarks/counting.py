"""What the statistics cost: the time of the counting itself, against that of a small message.

To compare two builds by their rate of messages would need many rounds: what is looked for is less
than their spread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

from distributed.comm import connect, listen

from dask_fabric.wire.metrics import time_of_counting

COUNTINGS = 10_000_000
BURST = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=20_000, help="in each round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rounds = range(arguments.rounds)
    counting_ns = min(time_of_counting(COUNTINGS) for _ in rounds)
    message_ns = 1000 * asyncio.run(time_of_message(arguments.rounds, arguments.messages))
    # One message is counted by its sender and by its receiver.
    added_ns = 2 * counting_ns
    found = {
        "counting_ns": round(counting_ns, 1),
        "added_ns_per_message": round(added_ns, 1),
        "message_us": round(message_ns / 1000, 2),
        "percent": round(100 * added_ns / message_ns, 2),
    }
    if arguments.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name:22}{value}" for name, value in found.items()))


async def time_of_message(round_count: int, message_count: int) -> float:
    """Give the microseconds of CPU for a small message, of both sides, in the best round."""
    accepted: asyncio.Queue = asyncio.Queue()
    async with listen("fabric+tcp://127.0.0.1", accepted.put) as listener:
        near = await connect(listener.contact_address)
        far = await accepted.get()
        best = min([await flood(near, far, message_count) for _ in range(round_count)])
        await near.close()
        await far.close()
    return best


async def flood(near, far, message_count: int) -> float:
    async def read() -> None:
        for _ in range(message_count):
            await far.read()

    begin = time.process_time()
    reading = asyncio.ensure_future(read())
    for number in range(message_count):
        await near.write({"op": "flood", "number": number})
        if number % BURST == 0:
            await asyncio.sleep(0)
    await reading
    return (time.process_time() - begin) / message_count * 1e6


if __name__ == "__main__":
    main()
