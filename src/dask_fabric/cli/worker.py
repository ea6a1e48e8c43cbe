"""``dask fabric worker``: its options, and how they become nannies."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

_FILE = click.Path(exists=True, dir_okay=False, resolve_path=True)
# Named as in `dask worker`, or in `dask cuda worker` if they concern GPUs.
_OPTIONS = (
    click.option("--nworkers", help="Number of workers; default: one for each GPU, or 1."),
    click.option("--nthreads", type=int, help="Threads of each; default: 1; all CPUs if no GPU."),
    click.option("--name", help="Name of the worker; if there are several: name-0, name-1, ..."),
    click.option("--memory-limit", default="auto", show_default=True, help="Host memory of each."),
    click.option("--resources", help='Of each worker, such as "GPU=1 MEM=10e9".'),
    click.option("--cupy-pool-size", help="Device memory to reserve for CuPy: 20GB, or 0.8 of it."),
    click.option("--rmm-pool-size", help="The same in RMM, from which CuPy then allocates."),
    click.option("--scheduler-file", help="File to which the scheduler has written its address."),
    click.option("--protocol", help="Such as fabric or fabric+tls; default: the scheduler's."),
    click.option("--host", help="Address to listen on."),
    click.option("--interface", help="Network interface to listen on, such as ib0."),
    click.option("--worker-port", help="Port, or range such as 9000:9007, of the workers."),
    click.option("--nanny-port", help="The same for their nannies."),
    click.option("--dashboard/--no-dashboard", default=True, help="Serve a page for each worker."),
    click.option("--dashboard-address", default=":0", show_default=True, help="Address of pages."),
    click.option("--local-directory", help="Folder for spilled data and uploaded files."),
    click.option("--death-timeout", help="Give up after this long without a scheduler."),
    click.option("--lifetime", help="Close the workers after this long."),
    click.option("--lifetime-stagger", help="Random variation of the lifetime, at most this."),
    click.option("--lifetime-restart", is_flag=True, default=None, help="Restart workers then."),
    click.option("--preload", multiple=True, help="Module to load in each worker."),
    click.option("--preload-nanny", multiple=True, help="Module to load in each nanny."),
    click.option("--worker-class", default="distributed.Worker", show_default=True),
    click.option("--tls-ca-file", type=_FILE, help="Certificate of the authority (PEM)."),
    click.option("--tls-cert", type=_FILE, help="Certificate of the workers (PEM)."),
    click.option("--tls-key", type=_FILE, help="Private key of the workers (PEM)."),
    click.option("--pid-file", type=click.Path(), help="File to write the process id to."),
)


def _with_options(function: Callable) -> Callable:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command()
@click.argument("scheduler", required=False)
@_with_options
def worker(pid_file: str | None, **options: Any) -> None:
    """Start one worker for each GPU of this host, or CPU workers if it has none.

    CUDA_VISIBLE_DEVICES chooses the GPUs; if it is empty, CPU workers are started.
    """
    from distributed.compatibility import asyncio_run
    from distributed.config import get_loop_factory

    from dask_fabric.gpu.launch import serve

    with _pid_file(pid_file):
        try:
            nannies = _plan(**options)
            asyncio_run(serve(nannies), loop_factory=get_loop_factory())
        except (TimeoutError, asyncio.TimeoutError) as exc:  # one class since Python 3.11
            raise click.ClickException(str(exc) or "the scheduler did not answer in time") from exc
        except Exception as exc:
            raise click.ClickException(_explain(exc)) from exc


def _explain(error: Exception) -> str:
    """Give the message of our own error; Dask's only reports that a worker has failed."""
    from dask_fabric.errors import FabricError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, FabricError):
        cause = cause.__cause__
    if cause is None:
        raise error
    return str(cause)


def _plan(
    nworkers: str | None,
    nthreads: int | None,
    cupy_pool_size: str | None,
    rmm_pool_size: str | None,
    worker_class: str,
    **options: Any,
) -> Callable[[], list]:
    """Plan the workers, print the plan, and give a function that makes their nannies."""
    from distributed import Nanny
    from distributed.utils import import_term

    from dask_fabric.gpu.launch import Nannies, pool_of
    from dask_fabric.gpu.seats import find_seats

    _check_scheduler(options)
    pool = pool_of(cupy_pool_size, rmm_pool_size)
    seats, reason = find_seats()
    count, nthreads = _sizes(len(seats), nworkers, nthreads)
    make: Any = Nannies(seats, pool, import_term(worker_class)) if seats else Nanny
    if not seats:
        options["worker_class"] = import_term(worker_class)
    for line in (f"no GPU here, so CPU workers: {reason}",) if not seats else map(str, seats):
        click.echo(line, err=True)
    click.echo(f"workers: {count}, threads of each: {nthreads}", err=True)
    keywords = _nanny_keywords(count, nthreads, bool(seats), **options)
    return lambda: [make(**one) for one in keywords]


_NO_INTERRUPTS = "dask_fabric.gpu.interrupts"
_FORM = "such as: dask fabric worker fabric://10.0.0.1:8786"


def _check_scheduler(options: dict[str, Any]) -> None:
    import dask.config
    from distributed.comm import resolve_address

    address = options["scheduler"] or dask.config.get("scheduler-address", None)
    if not (address or options["scheduler_file"]):
        raise click.UsageError(f"name the scheduler, {_FORM}; or give --scheduler-file")
    try:
        resolve_address(address) if address else None
    except (ValueError, OSError) as exc:  # no such scheme, no port, no such host
        raise click.UsageError(f"the scheduler {address!r}: {exc}; {_FORM}") from None


def _sizes(gpu_count: int, nworkers: str | None, nthreads: int | None) -> tuple[int, int]:
    """Give the number of workers and of threads of each, with defaults like Dask's."""
    from dask.system import CPU_COUNT
    from distributed.deploy.utils import nprocesses_nthreads

    if nworkers == "auto" and not gpu_count:
        return nprocesses_nthreads()
    try:
        count = int(nworkers) if nworkers not in (None, "auto") else gpu_count or 1
    except ValueError:
        raise click.UsageError(f"--nworkers {nworkers}: expected a number, or auto") from None
    if count < 0 and not gpu_count:
        count += CPU_COUNT + 1  # as in `dask worker`
    if count < 1:
        raise click.UsageError(f"--nworkers {nworkers}: there must be at least one worker")
    return count, nthreads or (1 if gpu_count else max(1, CPU_COUNT // count))


def _nanny_keywords(
    count: int,
    nthreads: int,
    on_gpus: bool,
    *,
    scheduler: str | None,
    name: str | None,
    resources: str | None,
    memory_limit: str,
    tls_ca_file: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    nanny_port: str | None,
    **options: Any,
) -> list[dict[str, Any]]:
    security = {
        "tls_ca_file": tls_ca_file,
        "tls_worker_cert": tls_cert,
        "tls_worker_key": tls_key,
    }
    common = {
        **options,
        "preload": (*options["preload"], _NO_INTERRUPTS),
        "scheduler_ip": scheduler,
        "nthreads": nthreads,
        "resources": _resources(resources),
        "memory_limit": _memory_limit(memory_limit, count) if on_gpus else memory_limit,
        "security": {key: value for key, value in security.items() if value is not None},
        "port": _ports("--nanny-port", nanny_port, count),
        "worker_port": _ports("--worker-port", options["worker_port"], count),
    }
    return [{**common, "name": _name(name, count, number)} for number in range(count)]


def _name(name: str | None, count: int, number: int) -> str | int | None:
    if name and count > 1:
        return f"{name}-{number}"
    return int(name) if name and name.isdecimal() else name or None


def _memory_limit(given: str, count: int) -> int | None:
    """Divide the host's memory by workers; Dask divides it by threads, of which each has one."""
    import logging

    from distributed.worker_memory import parse_memory_limit

    return parse_memory_limit(given, 1, count, logger=logging.getLogger("distributed.nanny"))


def _resources(text: str | None) -> dict[str, float] | None:
    if not text:
        return None
    try:
        pairs = (pair.split("=") for pair in text.replace(",", " ").split())
        return {name: float(value) for name, value in pairs}
    except ValueError:
        raise click.UsageError(f"--resources {text}: expected a form like GPU=1 MEM=10e9") from None


def _ports(option: str, text: str | None, count: int) -> str | None:
    """Check a range of ports; each worker takes the first free one."""
    from distributed.utils import parse_ports

    try:
        ports = parse_ports(text)
    except (ValueError, TypeError) as exc:
        raise click.UsageError(f"{option} {text}: {exc}") from None
    if ports not in ([None], [0]) and len(ports) < count:
        raise click.UsageError(f"{option} {text}: {count} workers need {count} ports")
    return text


@contextlib.contextmanager
def _pid_file(path: str | None) -> Iterator[None]:
    if path is None:
        yield
        return
    Path(path).write_text(str(os.getpid()))
    try:
        yield
    finally:
        Path(path).unlink(missing_ok=True)
