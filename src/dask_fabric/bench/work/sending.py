"""Sending the workloads' functions to processes that lack this package."""

from __future__ import annotations

import contextlib
import inspect

from distributed import Client

from dask_fabric.bench.work import arrays, local


def is_everywhere(client: Client) -> bool:
    """Whether the scheduler and all workers can import the workloads."""

    def is_here() -> bool:  # a nested function, so pickled by value
        try:
            import dask_fabric.bench.work.arrays  # noqa: F401
        except ImportError:
            return False
        return True

    return client.run_on_scheduler(is_here) and all(client.run(is_here).values())


def send_as_they_are() -> None:
    """Have the workloads' functions pickled by value from now on.

    Deep within a graph, only the module name ``__main__`` makes Dask do that.
    """
    modules = [arrays, local]
    with contextlib.suppress(ImportError):  # without pandas, frames are not used
        from dask_fabric.bench.work import frames

        modules.append(frames)
    for module in modules:
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                function.__module__ = "__main__"
