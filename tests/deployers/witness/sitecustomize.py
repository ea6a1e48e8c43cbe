"""Has each Python process write at its end what its comms carried, with its program unchanged."""

import atexit
import json
import os
import sys
from pathlib import Path


def write() -> None:
    if "dask_fabric" in sys.modules:
        peers = sys.modules["dask_fabric"].statistics()["peers"]
        folder = Path(os.environ["DASK_FABRIC_TEST_WITNESS"])
        (folder / f"{os.getpid()}.json").write_text(json.dumps(peers))


atexit.register(write)
