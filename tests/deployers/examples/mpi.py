"""A cluster of the ranks of an MPI job: mpirun -n 4 python mpi.py."""

import dask.array as da
from dask.distributed import Client
from dask_mpi import initialize

initialize(protocol="fabric", nthreads=1)
client = Client()
x = da.ones((2000, 2000), chunks=(500, 500))
y = (x + x.T).compute()
print(int(y.sum()))
client.close()
