"""Run many schedules: ``python -m tests.simulation --count N --seed S``.

Stops at the first failure, and prints its seed and its last steps.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice

from .world import Failure, run

BATCH_COUNT = 1000
BATCHES_PER_LINE = 20
SEED_LIMIT = 1 << 40


def run_batch(seed: int, count: int, steps: int) -> str:
    """Run schedules of consecutive seeds; give the first failure, or an empty text."""
    for number in range(seed, seed + count):
        try:
            run(number, steps)
        except Failure as failure:
            return str(failure)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--count", type=int, default=10_000, help="schedules")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(SEED_LIMIT), help="of the first schedule"
    )
    parser.add_argument(
        "--steps", type=int, default=60, help="of each schedule, before the faults end"
    )
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    print(f"{options.count} schedules from seed {options.seed} on", flush=True)
    begin = time.perf_counter()
    batches = [
        (options.seed + at, min(BATCH_COUNT, options.count - at), options.steps)
        for at in range(0, options.count, BATCH_COUNT)
    ]
    failure = run_batches(batches, options.processes)
    seconds = time.perf_counter() - begin
    print(failure or f"nothing found in {seconds:.0f} s ({options.count / seconds:.0f} a second)")
    return bool(failure)


def run_batches(batches: list[tuple], process_count: int) -> str:
    """Run the batches; give the first failure, or an empty text."""
    left = iter(batches)
    with ProcessPoolExecutor(process_count) as pool:
        running = {pool.submit(run_batch, *batch) for batch in islice(left, process_count)}
        ended_count = 0
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                if future.result():
                    pool.shutdown(cancel_futures=True)
                    return future.result()
                running.update(pool.submit(run_batch, *batch) for batch in islice(left, 1))
                ended_count += 1
                if ended_count % BATCHES_PER_LINE == 0:
                    print(f"{ended_count * BATCH_COUNT} run", flush=True)
    return ""


if __name__ == "__main__":
    sys.exit(main())
