"""The command ``dask fabric history``. The reader of the file is imported only when it runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dask_fabric.telemetry.history.file import Record

_JOB = click.IntRange(min=1)
_OUT = click.Path(dir_okay=False, path_type=Path)


def _keep_file(ctx: click.Context, parameter: click.Parameter, file: Path | None) -> None:
    """Have the file for all commands, whether it was named before or after one."""
    if file is not None:
        ctx.obj = file


_file_option = click.option(
    "--file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    callback=_keep_file,
    expose_value=False,
    help="The history; without it, the one that fabric.history.file names in Dask's configuration.",
)


@click.group(invoke_without_command=True)
@_file_option
@click.pass_context
def history(ctx: click.Context) -> None:
    """Show past jobs that schedulers have recorded in fabric.history.file.

    Without a command, lists them.
    """
    if importlib.util.find_spec("_sqlite3") is None:
        raise click.ClickException("this Python lacks SQLite: use one that has the module sqlite3")
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_jobs)


@history.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_file_option
@click.pass_obj
def list_jobs(file: Path | None, as_json: bool = False) -> None:
    """List all jobs, the oldest first."""
    from dask_fabric.cli.jobs import overview

    records, now = _read(file), time.time()
    if as_json:
        click.echo(json.dumps([_plain(record, now) for record in records]))
    else:
        click.echo(overview(records, now))


@history.command()
@click.argument("job", type=_JOB)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_file_option
@click.pass_obj
def show(file: Path | None, job: int, as_json: bool) -> None:
    """Show all details of JOB, a number in the list."""
    from dask_fabric.cli.jobs import details

    record, now = _find(_read(file), job), time.time()
    click.echo(json.dumps(_plain(record, now)) if as_json else details(record, now))


@history.command()
@click.argument("one", metavar="A", type=_JOB)
@click.argument("other", metavar="B", type=_JOB)
@_file_option
@click.pass_obj
def compare(file: Path | None, one: int, other: int) -> None:
    """Show jobs A and B side by side, with the ratio of B to A."""
    from dask_fabric.cli.jobs import comparison

    records = _read(file)
    click.echo(comparison(_find(records, one), _find(records, other), time.time()))


@history.command()
@click.option("--parquet", "parquet", metavar="FILE", type=_OUT, help="Write Parquet.")
@click.option("--csv", "csv", metavar="FILE", type=_OUT, help="Write CSV.")
@_file_option
@click.pass_obj
def export(file: Path | None, parquet: Path | None, csv: Path | None) -> None:
    """Write all jobs to a table, with a row for each job and path."""
    from dask_fabric.errors import UnavailableError
    from dask_fabric.telemetry.history import export as tables

    if parquet == csv:
        raise click.UsageError("give --parquet FILE or --csv FILE, or both with different files")
    found = tables.rows(_read(file), time.time())
    if not found:
        raise click.ClickException("there are no jobs to export")
    for path, write in ((parquet, tables.write_parquet), (csv, tables.write_csv)):
        if path is None:
            continue
        if _is_part(path, _path(file)):
            raise click.ClickException(f"{path} is the history itself")
        try:
            write(found, path)
        except (UnavailableError, OSError) as exc:
            raise click.ClickException(f"cannot write {path}: {exc}") from exc


def _is_part(path: Path, history: Path) -> bool:
    """Whether *path* is the history, or one of SQLite's files beside it."""
    real = history.resolve()
    beside = {real.with_name(real.name + end) for end in ("-journal", "-shm", "-wal")}
    return path.resolve() in beside or (path.exists() and path.samefile(real))


def _path(file: Path | None) -> Path:
    from dask_fabric import config
    from dask_fabric.errors import ConfigError

    try:
        named = file or config.load().history_file
    except ConfigError as exc:
        raise click.ClickException(str(exc)) from exc
    if named is None:
        raise click.ClickException(
            "no history is recorded: set fabric.history.file in the Dask configuration of "
            "schedulers, or give an existing file by --file"
        )
    return Path(os.path.expanduser(named))


def _read(file: Path | None) -> list[Record]:
    from dask_fabric.cli.jobs import complaint
    from dask_fabric.errors import HistoryError
    from dask_fabric.telemetry.history.file import read

    try:
        records, damaged = read(_path(file))
    except HistoryError as exc:
        raise click.ClickException(str(exc)) from exc
    if damaged:
        click.echo(complaint(damaged), err=True)
    return records


def _find(records: list[Record], number: int) -> Record:
    for record in records:
        if record.number == number:
            return record
    raise click.ClickException(f"there is no job {number}; dask fabric history lists them")


def _plain(record: Record, now: float) -> dict[str, Any]:
    return {**dataclasses.asdict(record), "state": record.state(now)}
