"""The command ``dask fabric bench``. The benchmark suite is imported only when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dask_fabric.bench.pairs import Protocol, Surroundings
    from dask_fabric.bench.results import Results
    from dask_fabric.bench.rounds import Effort
    from dask_fabric.bench.suite import Plan
    from dask_fabric.bench.workloads import Work

_ABOUT = {
    "pingpong": "round trips of a tiny message: p50, p90, p99 and their histogram",
    "stream": "small messages one way",
    "bandwidth": "arrays of many sizes, one way and both ways, on one comm or several",
    "connect": "connections, one after the other and in a storm",
    "gil": "round trips and arrays beside a thread of pure Python on either side",
    "cpu": "CPU time of both sides",
    "memory": "memory of a receiver of many large arrays",
    "floor": "the same without Dask: sockets, memory copies, ucx_perftest, fi_pingpong",
    "matrix": "all pairs of workers of a running cluster (--scheduler): slow links, odd nodes",
    "tasks": "many tiny tasks",
    "fetch": "a large array fetched, worker to worker",
    "busy-fetch": "the same, while both workers run Python",
    "transpose-sum": "(x + x.T).sum() of an array in chunks",
    "rechunk": "an array's blocks to columns, all to all",
    "broadcast": "an array of one worker, used by all others",
    "fanout": "the memory of all workers that have the same array",
    "shuffle": "a dataframe shuffled by a key",
    "merge": "two dataframes merged by a key",
}
_WORK = tuple(_ABOUT)[tuple(_ABOUT).index("tasks") :]
_DEFAULT = ("pingpong", "stream", "bandwidth", "connect", "gil")
_MODULES = {"cpu": "numpy", "gpu": "cupy"}
_OF_ONE_HOST = ("protocols", "ucxx", "ucx_library", "uvloop", "workers")
_OUTPUT = click.Path(dir_okay=False, readable=False, writable=True)
_SIZES = "1kB,8kB,64kB,1MB,10MB,100MB"


class _Bench(click.Group):
    """A group that runs scenarios if its first argument is not a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Bench)
def bench() -> None:
    """Measure any protocol that Dask knows, and compare results."""


def _list_of(convert: Callable[[str], Any]) -> Callable[..., tuple]:
    """Make a callback that parses a list of distinct values, separated by commas."""

    def read(ctx: click.Context, parameter: click.Parameter, text: str) -> tuple:
        try:
            values = tuple(convert(part.strip()) for part in text.split(","))
        except ValueError as exc:
            raise click.BadParameter(str(exc)) from exc
        if len(set(values)) < len(values):
            raise click.BadParameter("a value occurs twice")
        return values

    return read


def _size(text: str) -> int:
    from dask.utils import parse_bytes

    size = parse_bytes(text)
    if not 0 < size <= 2**40:
        raise ValueError(f"{text} is not a size for an array")
    return size


def _one_size(ctx: click.Context, parameter: click.Parameter, text: str) -> int:
    (size,) = _list_of(_size)(ctx, parameter, text)
    return size


def _two(
    ctx: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[str, str] | None:
    names = text.split(",") if text else None
    if names and (len(names) != 2 or names[0] == names[1]):
        raise click.BadParameter("two workers, separated by a comma")
    return (names[0].strip(), names[1].strip()) if names else None


def _count(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) <= 1000:
        raise ValueError(f"{text} is not a number from 1 to 1000")
    return int(text)


def _way(text: str) -> str:
    if text not in ("one", "both"):
        raise ValueError(f"{text} is neither one nor both")
    return text


def _scheme(text: str) -> str:
    return text.removesuffix("://")


def _outputs(command: Callable) -> Callable:
    """Add the options for the output."""
    for option in (
        click.option("--html", type=_OUTPUT, help="Write a page with plots."),
        click.option("--markdown", is_flag=True, help="Print tables as Markdown."),
        click.option("--json", "json_file", type=_OUTPUT,
                     help="Write all rounds to this file; - is standard output, without tables."),
    ):  # fmt: skip
        command = option(command)
    return command


def _cluster_options(command: Callable) -> Callable:
    """Add the options for measuring on a running cluster."""
    for option in (
        click.option("--matrix-size", default="16MB", callback=_one_size, show_default=True,
                     help="Size of the arrays of matrix."),
        click.option("--between", metavar="WORKER,WORKER", callback=_two,
                     help="Names or addresses of the two workers for scenarios except matrix."),
        click.option("--scheduler-file", type=click.Path(exists=True, dir_okay=False),
                     help="The same, by the file that its scheduler wrote."),
        click.option("--scheduler", metavar="ADDRESS",
                     help="Measure on the workers of this cluster instead of on this host."),
    ):  # fmt: skip
        command = option(command)
    return command


def _work_options(command: Callable) -> Callable:
    """Add the options for workloads, named as in dask-cuda's benchmarks."""
    for option in (
        click.option("--workers", type=click.IntRange(2, 1000), default=2, show_default=True,
                     help="Workers of each cluster that is started here."),
        click.option("--profile", metavar="FILE", type=_OUTPUT,
                     help="Write Dask's performance report of the workloads to this file (HTML)."),
        click.option("--partition-rows", type=click.IntRange(1), default=100_000,
                     show_default=True, help="Rows of each partition of the dataframes."),
        click.option("--partitions", type=click.IntRange(1), default=16, show_default=True,
                     help="Partitions of the dataframes."),
        click.option("--chunk-size", type=click.IntRange(1), default=1000, show_default=True,
                     help="Side of the chunks of the workloads' arrays."),
        click.option("--size", type=click.IntRange(1), default=8000, show_default=True,
                     help="Side of the workloads' arrays."),
        click.option("--type", "kind", type=click.Choice(["cpu", "gpu"]), default="cpu",
                     show_default=True, help="numpy and pandas, or cupy and cudf."),
        click.option("--runs", type=click.IntRange(1, 1000), default=2, show_default=True,
                     help="Runs of each workload on each cluster, after a warm-up."),
    ):  # fmt: skip
        command = option(command)
    return command


@bench.command()
@click.argument("scenarios", nargs=-1, metavar="[SCENARIO]...")
@click.option(
    "--protocols",
    default="tcp,fabric",
    callback=_list_of(_scheme),
    show_default=True,
    help="Any protocols that Dask knows; the first is the baseline.",
)
@click.option(
    "--ucxx",
    metavar="PYTHON",
    type=click.Path(exists=True, dir_okay=False),
    help="A Python with distributed-ucxx: its protocol ucx is measured too.",
)
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True)
@click.option("--round-seconds", type=click.FloatRange(0.01, 60), default=0.5, show_default=True)
@click.option("--quick", is_flag=True, help="3 rounds of 0.2 seconds.")
@click.option(
    "--sizes",
    default=_SIZES,
    callback=_list_of(_size),
    show_default=True,
    help="Sizes of the arrays of bandwidth; 1GB and more are possible.",
)
@click.option("--ways", default="one,both", callback=_list_of(_way), show_default=True)
@click.option(
    "--comms",
    default="1",
    callback=_list_of(_count),
    show_default=True,
    help="Numbers of parallel comms; 1,4 measures both.",
)
@click.option(
    "--messages",
    type=click.IntRange(10, 10**6),
    default=100,
    show_default=True,
    help="Messages of the scenario memory.",
)
@click.option("--floor/--no-floor", "has_floors", default=True, help="With or without the floors.")
@click.option("--sleepy", is_flag=True, help="Let idle CPUs sleep during the measurement.")
@click.option("--uvloop", is_flag=True, help="Run all processes on uvloop.")
@click.option(
    "--ucx-library",
    metavar="PATH",
    help="UCX library for fabric+ucx; perftest: the one that ucx_perftest is linked to.",
)
@_cluster_options
@_work_options
@_outputs
def run(json_file: str | None, markdown: bool, html: str | None, **options: Any) -> None:
    """Run scenarios, and print a table of each.

    Shows medians of some rounds, in which all protocols take turns; how many times better each is
    than the first protocol; and the fraction of what the machine can do (floor).
    """
    from dask_fabric.errors import BenchError

    for path in filter(None, (json_file, html, options["profile"])):
        _check_folder(path)
    if html:
        _check_plots()
    try:
        results = _run(options)
        _write(results, json_file, markdown, html)
    except BenchError as exc:
        raise click.ClickException(str(exc)) from exc
    sys.exit(results.is_incomplete)


_LINES = [f"  {name:13} {about}" for name, about in _ABOUT.items()]
_LINES.append(f"Default: {', '.join(_DEFAULT)}; work: all from tasks on")
_LINES += ["", "\b\nSee also: dask fabric bench compare A.json B.json (a verdict on two results)"]
run.epilog = "\n".join(["\b\nScenarios:", *_LINES])


def _run(options: dict[str, Any]) -> Results:
    from dask_fabric.bench import suite

    named = [
        one for name in options["scenarios"] or _DEFAULT
        for one in (_WORK if name == "work" else [name])
    ]  # fmt: skip
    unknown = [name for name in named if name not in suite.ALL]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(suite.ALL)}, work")
    return suite.run(_plan(tuple(dict.fromkeys(named)), options), options, sys.stderr)


def _plan(scenarios: tuple[str, ...], options: dict[str, Any]) -> Plan:
    from dask_fabric.bench import figures, matrix, suite

    protocols = _protocols(options)
    where = {"address": options["scheduler"], "scheduler_file": options["scheduler_file"]}
    if all(where.values()):
        raise click.UsageError("give --scheduler or --scheduler-file, not both")
    if any(where.values()):
        _refuse(_OF_ONE_HOST, "leave it out: a running cluster has its own")
    return suite.Plan(
        scenarios=scenarios,
        protocols=tuple(protocols),
        extent=figures.Extent(
            options["sizes"], options["ways"], options["comms"], _MODULES[options["kind"]]
        ),
        effort=_effort(options),
        where=where if any(where.values()) else None,
        between=options["between"],
        has_floors=options["has_floors"],
        awake=not options["sleepy"],
        message_count=options["messages"],
        around=_surroundings(protocols, options),
        work=_work(options),
        matrix=matrix.Effort(options["matrix_size"]),
    )


def _effort(options: dict[str, Any]) -> Effort:
    from dask_fabric.bench.rounds import Effort

    if options["quick"]:
        _refuse(("rounds", "round_seconds"), "leave it out, or --quick, which is 3 rounds of 0.2 s")
        options |= {"rounds": 3, "round_seconds": 0.2}  # the results tell them
    return Effort(options["rounds"], options["round_seconds"])


def _refuse(names: Sequence[str], reason: str) -> None:
    """Reject options that were given, but would have no effect."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')}: {reason}")


def _protocols(options: dict[str, Any]) -> list[Protocol]:
    from dask_fabric.bench.pairs import Protocol

    protocols = [Protocol(name, name) for name in options["protocols"]]
    if not options["ucxx"]:
        return protocols
    beside = Protocol("ucx", "ucx", options["ucxx"])
    return [*(one for one in protocols if one.name != "ucx"), beside]


def _surroundings(protocols: Sequence[Protocol], options: dict[str, Any]) -> Surroundings:
    from dask_fabric.bench import pairs, perftest

    library = options["ucx_library"]
    if library == "perftest":
        library = perftest.own_library()
        if library is None:
            raise click.BadParameter(
                "ucx_perftest is not installed (Debian: ucx-utils; PyPI: libucx-cu12)"
            )
    encrypted = any(protocol.is_encrypted for protocol in protocols)
    return pairs.Surroundings(
        module=_MODULES[options["kind"]],
        security=pairs.temporary_security() if encrypted else None,
        uvloop=options["uvloop"],
        environment={"DASK_FABRIC__UCX__LIBRARY": library} if library else None,
    )


def _work(options: dict[str, Any]) -> Work:
    from dask_fabric.bench.work.extent import Extent
    from dask_fabric.bench.workloads import Work

    names = ("size", "chunk_size", "partitions", "partition_rows", "kind")
    return Work(
        runs=options["runs"],
        rounds=1 if options["quick"] else 2,
        worker_count=options["workers"],
        profile=options["profile"],
        extent=Extent(**{name: options[name] for name in names}),
    )


def _write(results: Results, json_file: str | None, markdown: bool, html: str | None) -> None:
    from dask_fabric.bench import tables

    if json_file == "-":
        click.echo(results.as_json(), nl=False)
    else:
        click.echo(tables.render(results, markdown))
        if json_file:
            _save(json_file, results.as_json())
    if html:
        from dask_fabric.bench.page import page

        _save(html, page.render(results))


def _check_folder(path: str) -> None:
    """Reject a file that cannot be written before the measurement, not after it."""
    if path != "-" and not os.access(Path(path).absolute().parent, os.W_OK):
        raise click.ClickException(f"cannot write {path}: its folder is missing or not writable")


def _check_plots() -> None:
    """Complain of plots that cannot be drawn before it is measured, not after."""
    try:
        import dask_fabric.bench.page.page  # noqa: F401
    except ImportError as exc:
        reason = f"--html needs bokeh: pip install 'dask-fabric[bench]' ({exc})"
        raise click.ClickException(reason) from exc


def _save(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as exc:
        raise click.ClickException(f"cannot write {path}: {exc.strerror}") from exc
    click.echo(f"written: {path}", err=True)


@bench.command()
@click.argument("before", metavar="A.json")
@click.argument("after", metavar="B.json")
@click.option(
    "--threshold",
    type=click.FloatRange(0),
    default=0.05,
    show_default=True,
    help="Ratios that differ from 1 by less are noise.",
)
@click.option(
    "--fail-on-worse",
    is_flag=True,
    help="Exit with status 1 if a figure is worse, has failed or is missing.",
)
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
def compare(before: str, after: str, threshold: float, fail_on_worse: bool, markdown: bool) -> None:
    """Compare two files of --json: how many times better B is than A, and a verdict for each row.

    A figure is better or worse if the medians differ by more than the threshold and the middle
    halves of the rounds do not overlap.
    """
    from dask_fabric.bench import compare as comparing
    from dask_fabric.bench import results
    from dask_fabric.errors import BenchError

    try:
        a, b = results.read(before), results.read(after)
    except BenchError as exc:
        raise click.ClickException(str(exc)) from exc
    found = comparing.compare(a, b, threshold)
    click.echo(comparing.render(found, markdown))
    for warning in comparing.warnings(a, b):
        click.echo(f"warning: {warning}")
    bad = (comparing.WORSE, comparing.FAILED, comparing.GONE)
    sys.exit(fail_on_worse and any(one.verdict in bad for one in found))
