"""The command ``dask fabric key``."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import dask
import pytest
from click.testing import CliRunner

from dask_fabric.cli.key import key
from dask_fabric.comm.network import shared_key
from dask_fabric.wire.authentication import Keys


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def run(*words: str, fails: bool = False) -> str:
    done = CliRunner().invoke(key, list(map(str, words)))
    assert (done.exit_code != 0) == fails, done.output
    return done.output


def stored(path):
    return shared_key.read(path)


def test_a_key_is_made_shown_and_replaced(home):
    path = home / ".config/dask/fabric.key"
    said = run("create")
    (first,) = stored(path)
    (fingerprint,) = Keys([first.secret]).fingerprints
    assert said.splitlines()[:2] == [str(path), f"{fingerprint}  current"]
    assert first.secret.hex() not in said
    assert path.stat().st_mode & 0o777 == 0o600
    assert run("show") == f"{path}\n{fingerprint}  current\n"
    assert run("show", "--fingerprint") == f"{fingerprint}\n"
    said = run("rotate", "--keep", "8h")
    second, old = stored(path)
    assert old.secret == first.secret and second.secret != first.secret
    assert 8 * 3600 - 60 < old.until - time.time() < 8 * 3600 + 1  # whole seconds are written
    assert f"{fingerprint}  accepted until " in said
    run("rotate", "--keep", "0")  # ends the older one too
    (third,) = stored(path)
    assert third.until is None and third.secret not in (first.secret, second.secret)


def test_the_oldest_of_too_many_keys_is_dropped_and_told(home):
    run("create")
    (fingerprint,) = run("show", "--fingerprint").split()
    for _ in range(7):
        assert "any more" not in run("rotate", "--keep", "8h")
    assert f"{fingerprint}  not accepted any more: a file has 8 keys" in run("rotate")
    assert "any more" not in run("rotate", "--keep", "0")


def test_keys_that_are_made_at_once_are_all_kept(home):
    run("create")
    with ThreadPoolExecutor() as threads:
        for said in threads.map(lambda _: _in_a_process(home), range(3)):
            assert "current" in said
    assert len(stored(home / ".config/dask/fabric.key")) == 4


def test_nobody_who_holds_the_folder_stops_a_rotation(home, monkeypatch):
    monkeypatch.setattr(shared_key, "_LOCK_SECONDS", 0.1)
    run("create")
    held = os.open(home / ".config/dask", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    assert "current" in run("rotate", "--keep", "0")
    os.close(held)


def _in_a_process(home) -> str:
    command = [sys.executable, "-m", "dask", "fabric", "key", "rotate"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_keys_are_random(home):
    made = [run("create", "--file", home / str(number)) for number in range(3)]
    assert len(made) == 3
    assert len({stored(home / str(number))[0].secret for number in range(3)}) == 3


def test_a_key_is_not_overwritten(home):
    run("create")
    before = stored(home / ".config/dask/fabric.key")
    assert "rotate" in run("create", fails=True)
    assert stored(home / ".config/dask/fabric.key") == before
    assert [one.name for one in (home / ".config/dask").iterdir()] == ["fabric.key"]


def test_the_file_that_the_configuration_names(home):
    with dask.config.set({"fabric.auth.key-file": str(home / "mine")}):
        run("create")
        assert str(home / "mine") in run("show")
    assert (home / "mine").exists() and not (home / ".config").exists()


@pytest.mark.parametrize("words", [["show"], ["rotate"]])
def test_no_file(words):
    assert "`dask fabric key create` makes it" in run(*words, fails=True)


def test_what_cannot_be_written(home):
    (home / "file").touch()
    assert "cannot be written" in run("create", "--file", home / "file/key", fails=True)


@pytest.mark.parametrize("keep", ["soon", "-1", "inf", "nan", "9999999999d"])
def test_a_time_that_is_none(home, keep):
    run("create")
    assert "is no time" in run("rotate", "--keep", keep, fails=True)
    assert len(stored(home / ".config/dask/fabric.key")) == 1


def test_a_loop_of_links(home):
    (home / "a").symlink_to(home / "b")
    (home / "b").symlink_to(home / "a")
    assert "symbolic links" in run("rotate", "--file", home / "a", fails=True)


def test_a_file_that_others_may_read(home):
    run("create", "--file", home / "key")
    (home / "key").chmod(0o644)
    assert "may be used by others" in run("show", "--file", home / "key", fails=True)


def test_a_file_that_is_not_in_use_is_told(home):
    run("create")
    with dask.config.set({"fabric.auth.key": "01" * 32}):
        (fingerprint,) = Keys([b"\1" * 32]).fingerprints
        assert f"fabric.auth.key in Dask's configuration comes before it ({fingerprint})" in run(
            "rotate"
        )
        assert "not in use" not in run("show", "--file", home / ".config/dask/fabric.key")
    with dask.config.set({"fabric.auth.method": "munge"}):
        assert "is not in use here: fabric.auth.method is munge" in run("show")
    assert "not in use" not in run("show")


def test_a_link_that_leads_nowhere(home):
    (home / "key").symlink_to(home / "not mounted")
    said = run("show", "--file", home / "key", fails=True)
    assert f"is a link to {home / 'not mounted'}, and there is no such file" in said


def test_a_file_system_without_hard_links(home, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    run("create")
    path = home / ".config/dask/fabric.key"
    before = stored(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert "is there already" in run("create", fails=True)
    assert stored(path) == before
    assert [one.name for one in path.parent.iterdir()] == ["fabric.key"]
