"""The commands. Dask imports this module for each of its own commands: keep imports light."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import click

from dask_fabric import (
    config,  # noqa: F401 - so that `dask config` knows the section
    providers,
)
from dask_fabric.cli.bench import bench
from dask_fabric.cli.history import history
from dask_fabric.cli.key import key
from dask_fabric.cli.worker import worker

_PATHS = ("stream", "unix", "tls", *providers.names())


@click.group()
@click.version_option(package_name="dask-fabric", prog_name="dask-fabric")
def fabric() -> None:
    """The fabric:// communication backend: workers, reports and benchmarks."""


fabric.add_command(bench)
fabric.add_command(history)
fabric.add_command(key)
fabric.add_command(worker)


@fabric.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--require",
    "required",
    metavar="PATH",
    multiple=True,
    type=click.Choice(_PATHS),
    help=f"Exit with status 1 unless this path works; may be repeated. One of {', '.join(_PATHS)}.",
)
@click.option(
    "--peer",
    "peer",
    metavar="ADDRESS",
    help="Connect to the Dask server at this address, and show which paths the two use, and why.",
)
def doctor(as_json: bool, required: tuple[str, ...], peer: str | None) -> None:
    """Report which paths processes of this host can use, why not the others, and remedies.

    Tries every path between two processes, which takes some seconds. The exit status is 1 if a
    required path or the configuration does not work.
    """
    with _quiet():
        if peer is None:
            reasons, error = _report_host(as_json, required)
        else:
            reasons, error = _report_pair(peer, as_json, required), ""
    for path, reason in reasons.items():
        click.echo(f"{path} is required, but not in use: {reason}", err=True)
    if error:
        click.echo(f"the configuration is invalid: {error}", err=True)
    sys.exit(bool(reasons or error))


@fabric.command()
@click.argument("address")
@click.option(
    "--interval",
    "interval_seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Time between two samples.",
)
@click.option("--once", is_flag=True, help="Print one table, of one interval, and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a line for each interval.")
def top(address: str, interval_seconds: float, once: bool, as_json: bool) -> None:
    """Show the current traffic of the cluster of the scheduler at ADDRESS, by path.

    Works with any scheme; workers without dask-fabric are named.
    """
    from dask_fabric.cli import top as looks
    from dask_fabric.comm.network.reachability import explain

    def show(found: dict[str, Any]) -> None:
        if as_json:
            click.echo(looks.as_json(found))
            return
        if sys.stdout.isatty() and not once:
            click.clear()
        click.echo(looks.as_text(found, shutil.get_terminal_size((200, 24)).columns))

    with _quiet(), contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(looks.watch(address, interval_seconds, once, show))
        except BrokenPipeError:  # the reader has closed the pipe
            raise
        except Exception as exc:
            reason = f"cannot watch the cluster at {address}: {explain(exc)}"
            raise click.ClickException(reason) from exc


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log off the terminal: the report contains everything."""
    logger = logging.getLogger("dask_fabric")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _report_host(as_json: bool, required: tuple[str, ...]) -> tuple[dict[str, str], str]:
    """Print the report; give the reasons of required paths that do not work, and of nothing at all.

    The second is the error of the configuration, or "".
    """
    from dask_fabric.cli.doctor.advice import advise, scheme_uses
    from dask_fabric.cli.doctor.render import render, text_width
    from dask_fabric.cli.doctor.report import inspect_all

    facts = inspect_all()
    uses, advice = scheme_uses(facts), advise(facts)
    if as_json:
        _print_json(facts, schemes=uses, advice=advice)
    else:
        click.echo(render(facts, uses, advice, text_width()))
    about_paths = {one.about: one for one in advice}
    reasons = {
        path: " -> ".join(filter(None, (about_paths[path].reason, about_paths[path].remedy)))
        for path in required
        if not facts.path(path).works
    }
    return reasons, facts.configuration.error


def _report_pair(address: str, as_json: bool, required: tuple[str, ...]) -> dict[str, str]:
    """Print the paths that the pair uses; give the reasons of required paths that it does not."""
    from dask_fabric.cli.doctor.remote import ask, full_address
    from dask_fabric.cli.doctor.render import render_pair, text_width
    from dask_fabric.comm.network.reachability import explain

    for name, value in providers.environment().items():  # standard output is for the report
        os.environ.setdefault(name, value)
    try:
        pair = asyncio.run(ask(full_address(address)))
    except Exception as exc:
        raise click.ClickException(f"cannot ask {address or 'no address'}: {explain(exc)}") from exc
    if as_json:
        _print_json(pair)
    else:
        click.echo(render_pair(pair, text_width()))
    return {
        path: pair.trials.get(path)
        or pair.refused.get(path, f"the pair uses {', '.join(pair.used)}")
        for path in required
        if path not in pair.used
    }


def _print_json(report: Any, **more: Any) -> None:
    content = dataclasses.asdict(report)
    content |= content.pop("details", {})  # each path's under its name
    content |= more
    click.echo(json.dumps(content, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
