"""Functions called lazily, on a cluster of this host."""

from dask import compute, delayed
from dask.distributed import Client


@delayed
def square(number):
    return number * number


@delayed
def add(left, right):
    return left + right


if __name__ == "__main__":
    client = Client(n_workers=2, threads_per_worker=1, protocol="fabric")
    sums = [add(square(number), square(number + 1)) for number in range(8)]
    print(sum(compute(*sums)))
    client.close()
