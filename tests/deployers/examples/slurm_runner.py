"""A cluster of the tasks of a Slurm job: srun -n 4 python slurm_runner.py."""

import dask.array as da
from dask.distributed import Client
from dask_jobqueue.slurm import SLURMRunner

with (
    SLURMRunner(
        scheduler_file="scheduler-{job_id}.json", scheduler_options={"protocol": "fabric"}
    ) as runner,
    Client(runner) as client,
):
    client.wait_for_workers(runner.n_workers)
    x = da.ones((2000, 2000), chunks=(500, 500))
    y = (x + x.T).compute()
    print(int(y.sum()))
