"""What is asked of the schemes: how many times better one shall be than another, by figure."""

from __future__ import annotations

from collections.abc import Sequence

from report import Row, print_grid

SOCKETS = "sockets"
COPIES = "process_vm_readv"
PERFTEST = "ucx_perftest"
UCXX = "ucx"  # distributed-ucxx

# Figure (how its name begins), scheme, against, times better at least.
ASKED = (
    ("round trip", "fabric", "tcp", 5),
    ("small messages one way", "fabric", "tcp", 8),
    ("numpy 8 kB,", "fabric", "tcp", 2.5),
    ("numpy 64 kB,", "fabric", "tcp", 2.5),
    ("numpy 1 MB,", "fabric", "tcp", 2.5),
    ("numpy 10 MB,", "fabric", "tcp", 3),
    ("numpy 100 MB, acknowledged", "fabric", "tcp", 5),
    ("numpy 100 MB, acknowledged", "fabric", COPIES, 0.8),
    ("numpy 1 MB,", "fabric+tcp", "tcp", 1),
    ("numpy 1 MB,", "fabric+tcp", SOCKETS, 0.9),
    ("numpy 10 MB,", "fabric+tcp", "tcp", 1),
    ("numpy 10 MB,", "fabric+tcp", SOCKETS, 0.9),
    ("numpy 100 MB, acknowledged", "fabric+tcp", "tcp", 1),
    ("numpy 100 MB, acknowledged", "fabric+tcp", SOCKETS, 0.9),
    ("numpy 10 MB,", "fabric+ucx", PERFTEST, 0.8),
    ("numpy 100 MB, acknowledged", "fabric+ucx", PERFTEST, 0.8),
    ("numpy 10 MB,", "fabric+ucx", UCXX, 4),
    ("numpy 100 MB, acknowledged", "fabric+ucx", UCXX, 4),
    ("numpy 100 MB, busy receiver", "fabric", "tcp", 10),
    ("CPU", "fabric", "tcp", 4),
    ("CPU", "fabric+tcp", "tcp", 1 / 0.7),
    ("connects", "fabric", "tcp", 1.2),
    ("connects", "fabric+ucx", UCXX, 8),
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


def compare(rows: Sequence[Row]) -> list[dict]:
    """What is asked of the rows that were measured, and what came out."""
    results = []
    for figure, scheme, against, asked in ASKED:
        for row in rows:
            measured = row.times_better(scheme, against)
            if row.name.startswith(figure) and measured is not None:
                result = {"figure": row.name, "scheme": scheme, "against": against}
                results.append({**result, "asked": asked, "measured": measured})
    return results


def print_asked(results: Sequence[dict]) -> None:
    """Print a line for each, with whether it is reached."""
    head = ["figure", "scheme", "against", "times better", "asked", ""]
    print()
    print_grid([head, *map(_cells, results)])


def _cells(result: dict) -> list[str]:
    reached = result["measured"] >= result["asked"]
    return [
        result["figure"],
        result["scheme"],
        result["against"],
        f"{result['measured']:.2f}",
        f"{result['asked']:.3g}",
        "" if reached else "missed",
    ]
