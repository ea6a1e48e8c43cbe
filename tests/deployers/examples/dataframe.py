"""A dataframe of several CSV files."""

from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.distributed import Client, LocalCluster

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    Path("data").mkdir()
    for day in range(4):
        hours = pd.DataFrame({"station": rng.integers(0, 10, 50_000), "wind": 1.5})
        hours.to_csv(f"data/{day}.csv", index=False)
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, protocol="fabric")
    client = Client(cluster)
    frame = dd.read_csv("data/*.csv")
    print(frame.groupby("station").wind.mean().compute().sum())
    print(len(frame.set_index("station").compute()))
    client.close()
    cluster.close()
