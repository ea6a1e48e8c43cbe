"""An array and its transpose: each chunk meets one of another worker."""

import dask.array as da
from dask.distributed import Client, LocalCluster

if __name__ == "__main__":
    with LocalCluster(n_workers=2, protocol="fabric") as cluster, Client(cluster) as client:
        x = da.ones((4000, 4000), chunks=(1000, 1000))
        y = x + x.T
        print(int(y.sum().compute()))
        print(y.compute().shape)
