"""256 tasks, some of which wait, on all cores of a node."""

import time

import dask
from dask.distributed import Client, LocalCluster


def work(number):
    time.sleep(0.01)
    return number


if __name__ == "__main__":
    cluster = LocalCluster(n_workers=4, threads_per_worker=1, protocol="fabric")
    client = Client(cluster)
    results = dask.compute([dask.delayed(work)(number) for number in range(256)])[0]
    print(sum(results))
    client.close()
    cluster.close()
