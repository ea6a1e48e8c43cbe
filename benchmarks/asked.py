"""What is asked of the schemes: how many times better one shall be than another, by figure.

``asked.py RESULTS.json...`` reads what ``dask fabric bench --json`` wrote; see ``make bench``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from dask_fabric.bench.results import Row, read
from dask_fabric.text_table import table

SOCKETS = "sockets"
COPIES = "process_vm_readv"
PERFTEST = "ucx_perftest"
UCXX = "ucx"  # distributed-ucxx

# Figure (how its name begins), scheme, against, times better at least.
ASKED = (
    ("round trip of a tiny message, p50", "fabric", "tcp", 5),
    ("small messages one way", "fabric", "tcp", 8),
    ("numpy 8 kB, acknowledged", "fabric", "tcp", 2.5),
    ("numpy 64 kB, acknowledged", "fabric", "tcp", 2.5),
    ("numpy 1 MB, acknowledged", "fabric", "tcp", 2.5),
    ("numpy 10 MB, acknowledged", "fabric", "tcp", 3),
    ("numpy 100 MB, acknowledged", "fabric", "tcp", 5),
    ("numpy 100 MB, acknowledged", "fabric", COPIES, 0.8),
    ("numpy 1 MB, acknowledged", "fabric+tcp", "tcp", 1),
    ("numpy 1 MB, acknowledged", "fabric+tcp", SOCKETS, 0.9),
    ("numpy 10 MB, acknowledged", "fabric+tcp", "tcp", 1),
    ("numpy 10 MB, acknowledged", "fabric+tcp", SOCKETS, 0.9),
    ("numpy 100 MB, acknowledged", "fabric+tcp", "tcp", 1),
    ("numpy 100 MB, acknowledged", "fabric+tcp", SOCKETS, 0.9),
    ("numpy 10 MB, acknowledged", "fabric+ucx", PERFTEST, 0.8),
    ("numpy 100 MB, acknowledged", "fabric+ucx", PERFTEST, 0.8),
    ("numpy 10 MB, acknowledged", "fabric+ucx", UCXX, 4),
    ("numpy 100 MB, acknowledged", "fabric+ucx", UCXX, 4),
    ("numpy 100 MB, busy receiver", "fabric", "tcp", 10),
    ("CPU", "fabric", "tcp", 4),
    ("CPU", "fabric+tcp", "tcp", 1 / 0.7),
    ("connects, one after the other", "fabric", "tcp", 1.2),
    ("connects, one after the other", "fabric+ucx", UCXX, 8),
    ("numpy", "fabric+tls", "tls", 1),
    ("4,000 tiny tasks", "fabric", "tcp", 1.1),
    ("fetch of 400 MB", "fabric", "tcp", 4),
    ("fetch of 100 MB", "fabric", "tcp", 4),
    ("(x + x.T).sum()", "fabric", "tcp", 1.2),
    ("cupy", "fabric", PERFTEST, 0.8),
    ("cupy", "fabric+tcp", "tcp", 2),
    ("cupy", "fabric", UCXX, 1.5),
    ("GPU:", "fabric", "tcp", 1),
)


def lines(rows: Sequence[Row]) -> Iterator[list[str]]:
    """What is asked of the rows that were measured, and what came out."""
    for figure, scheme, against, asked in ASKED:
        for row in rows:
            measured = row.times_better(scheme, against)
            if row.name.startswith(figure) and measured is not None:
                reached = "" if measured >= asked else "missed"
                yield [row.name, scheme, against, f"{measured:.2f}", f"{asked:.3g}", reached]


def main() -> None:
    rows = [row for path in sys.argv[1:] for row in read(path).rows]
    head = ["figure", "scheme", "against", "times better", "asked", ""]
    print(*table([head, *lines(rows)], has_head=True, markdown=True), sep="\n")


if __name__ == "__main__":
    main()
