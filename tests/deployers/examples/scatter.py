"""Data that is sent ahead of the tasks that use it, and results that are gathered."""

import numpy as np
from dask.distributed import Client


def scaled_sum(array, factor):
    return float(array.sum() * factor)


if __name__ == "__main__":
    client = Client(n_workers=2, threads_per_worker=1, protocol="fabric")
    array = np.ones(2_000_000)
    (future,) = client.scatter([array], broadcast=True)
    sums = client.map(scaled_sum, [future] * 4, range(4))
    print(sum(client.gather(sums)))
    print(client.gather(future).nbytes)
    client.close()
