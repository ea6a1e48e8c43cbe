"""The command ``dask fabric key``: the key that all processes of a user share."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dask_fabric.comm.network.shared_key import StoredKey
    from dask_fabric.config import Settings

_file_option = click.option(
    "--file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The key file; without it, the one of fabric.auth.key-file, or ~/.config/dask/fabric.key.",
)


@click.group()
def key() -> None:
    """Make and replace the key that all processes of a user share.

    A process that has a key requires it of every process that it talks to. It is found by itself in
    ~/.config/dask/fabric.key.
    """


@key.command()
@_file_option
def create(file: Path | None) -> None:
    """Write a new key to a file that only its owner may read."""
    from dask_fabric.comm.network import shared_key

    path = _path(file)
    try:
        shared_key.write(path, (shared_key.StoredKey(_new_secret(), None),), replace=False)
    except FileExistsError:
        raise click.ClickException(
            f"{path} is there already: `dask fabric key rotate` replaces the key in it"
        ) from None
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error
    _show(path)
    click.echo(
        "Processes require it from now on, of new connections. Copy the file to hosts with another "
        "home."
    )


@key.command()
@_file_option
@click.option("--fingerprint", is_flag=True, help="Only that of the current key, for scripts.")
def show(file: Path | None, fingerprint: bool) -> None:
    """Show the fingerprint of each key: what may be known of it."""
    path = _path(file)
    if fingerprint:
        click.echo(_fingerprint(_read(path)[0]))
    else:
        _show(path)


@key.command()
@_file_option
@click.option(
    "--keep",
    "keep",
    metavar="TIME",
    default="1d",
    show_default=True,
    help="How long the old key, and older ones, are still accepted: 8h, 7d; 0: not at all.",
)
def rotate(file: Path | None, keep: str) -> None:
    """Replace the key; the old one is still accepted for a while.

    Running processes take the new key within a second, for new connections. Those that are
    open stay open.
    """
    from dask.utils import parse_timedelta

    from dask_fabric.comm.network import shared_key
    from dask_fabric.wire.authentication import KEY_COUNT_LIMIT

    path = _path(file)
    try:
        seconds = float(parse_timedelta(keep))
        if not 0 <= seconds < shared_key.TIME_LIMIT - time.time():
            raise ValueError(keep)
    except (ValueError, KeyError) as error:
        raise click.BadParameter(f"{keep!r} is no time, such as 8h or 7d") from error
    with shared_key.locked(path):
        before = _read(path)
        stored = shared_key.rotated(before, _new_secret(), time.time() + seconds)
        try:
            shared_key.write(path, stored, replace=True)
        except OSError as error:
            raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error
    _show(path)
    kept = {one.secret for one in stored}
    for one in before:
        is_ended = one.until is not None and one.until <= time.time()
        if one.secret not in kept and seconds and not is_ended:
            limit = f"a file has {KEY_COUNT_LIMIT} keys at most"
            click.echo(f"{_fingerprint(one)}  not accepted any more: {limit}", err=True)


def _new_secret() -> bytes:
    from dask_fabric.wire.authentication import KEY_BYTES

    return secrets.token_bytes(KEY_BYTES)


def _path(file: Path | None) -> Path:
    """Give the file that is meant."""
    from dask_fabric import config
    from dask_fabric.comm.network import shared_key
    from dask_fabric.errors import ConfigError

    if file is not None:
        return file
    try:
        settings = config.load()
        path = shared_key.file_of(settings)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    if path is None:
        raise click.ClickException("this user has no home: name a file with --file")
    if reason := _unused(settings):
        click.echo(f"{path} is not in use here: {reason}", err=True)
    return path


def _unused(settings: Settings) -> str:
    """Give why processes with this configuration do not use a file of keys, or ""."""
    from dask_fabric.wire.authentication import KEY, Keys

    if settings.auth_method != KEY:
        return f"fabric.auth.method is {settings.auth_method} in Dask's configuration"
    if settings.auth_key is not None:
        (fingerprint,) = Keys((settings.auth_key,)).fingerprints
        return f"fabric.auth.key in Dask's configuration comes before it ({fingerprint})"
    return ""


def _read(path: Path) -> tuple[StoredKey, ...]:
    from dask_fabric.comm.network import shared_key
    from dask_fabric.errors import ConfigError

    try:
        return shared_key.read(path)
    except FileNotFoundError:
        raise click.ClickException(
            f"there is no {path}; `dask fabric key create` makes it"
        ) from None
    except ConfigError as error:
        raise click.ClickException(str(error)) from error


def _show(path: Path) -> None:
    click.echo(path)
    for one in _read(path):
        if one.until is None:
            click.echo(f"{_fingerprint(one)}  current")
        else:
            end = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.until))
            click.echo(f"{_fingerprint(one)}  accepted until {end}")


def _fingerprint(stored: StoredKey) -> str:
    from dask_fabric.wire.authentication import Keys

    return Keys((stored.secret,)).fingerprints[0]
