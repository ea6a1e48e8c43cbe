"""The key of a process: where it comes from, who is refused, and what replaces it."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from pathlib import Path

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.comm import connect, listen
from distributed.comm.core import FatalCommClosedError
from distributed.protocol import to_serialize
from tests.comm import asking
from tests.comm.asking import PATIENCE_SECONDS, echo
from tests.conformance.conftest import unused_port
from tests.conftest import LOCAL_CLUSTER

from dask_fabric import config
from dask_fabric.comm.network import shared_key
from dask_fabric.comm.network.shared_key import StoredKey
from dask_fabric.errors import ConfigError
from dask_fabric.wire.authentication import Keys

ONE, OTHER = b"\x01" * 32, b"\x02" * 32


@pytest.fixture(autouse=True)
def no_home(tmp_path, monkeypatch):
    """A home without a key, for this process and those that it starts."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shared_key.forget()
    yield tmp_path
    shared_key.forget()


@pytest.fixture
def key_file(no_home) -> Path:
    path = no_home / ".config/dask/fabric.key"
    shared_key.write(path, (StoredKey(ONE, None),), replace=False)
    return path


def a_second_passes() -> None:
    """For the file of keys, which is looked at again then."""
    shared_key._watched(shared_key.default_file())._looked_at -= 1
    shared_key._recent = (None, 0.0)


def current(**settings) -> Keys | None:
    shared_key._change_count += 1  # as if a second had passed
    names = {name.replace("_", "-"): value for name, value in settings.items()}
    with dask.config.set({f"fabric.auth.{name}": value for name, value in names.items()}):
        return shared_key.current(config.load())


def fingerprints(*secrets: bytes) -> tuple[str, ...]:
    return Keys(secrets).fingerprints


# ---- where it comes from


def test_no_key():
    assert current() is None


def test_the_default_file_is_found(key_file):
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert current().fingerprints == fingerprints(ONE)


def test_a_named_file_comes_before_it_and_a_key_before_both(key_file, tmp_path):
    other = tmp_path / "other.key"
    shared_key.write(other, (StoredKey(OTHER, None),), replace=False)
    assert current(key_file=str(other)).fingerprints == fingerprints(OTHER)
    third = "ab" * 32
    named = current(key=third, key_file=str(other))
    assert named.fingerprints == fingerprints(bytes.fromhex(third))


def test_a_home_of_another_user_that_is_closed_has_no_key(key_file, monkeypatch):
    """As HOME=/root in a container that runs as another user."""
    home = key_file.parents[2]
    monkeypatch.setattr(os, "access", lambda path, mode: path != home)
    shared_key.forget()
    assert current() is not None
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    assert current() is None
    with pytest.raises(ConfigError, match="this process has no key"):
        current(require=True)


def test_the_same_keys_are_the_same_object(key_file):
    """So that hellos with their fingerprints are made once."""
    assert current() is current()


def test_a_named_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file; `dask fabric key create`"):
        current(key_file=str(tmp_path / "none"))


def test_a_link_that_leads_nowhere_is_not_taken_for_no_key(key_file, tmp_path):
    """Its disk may be mounted later; until then the process would be open to everybody."""
    target = key_file.rename(tmp_path / "target")
    key_file.symlink_to(target)
    kept = target.rename(tmp_path / "kept")
    with pytest.raises(ConfigError, match=r"is a link to .*target, and there is no such file"):
        current()
    kept.rename(target)
    shared_key.forget()
    assert current().fingerprints == fingerprints(ONE)
    target.unlink()  # a process that has had the key keeps it
    assert current().fingerprints == fingerprints(ONE)


def test_a_key_is_required():
    with pytest.raises(ConfigError, match=r"fabric.auth.require is true, and this process has no"):
        current(require=True)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o700 | 0o010])
def test_a_file_that_others_may_use(key_file, mode):
    key_file.chmod(mode)
    with pytest.raises(ConfigError, match=r"may be used by others .*chmod 600"):
        current()


def test_a_file_of_another_user(key_file):
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(key_file, 1234, -1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        current()


def test_no_regular_file(tmp_path):
    with pytest.raises(ConfigError, match=r"not a regular file|cannot be read"):
        current(key_file=str(tmp_path))


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        shared_key.read(tmp_path / "pipe")


def test_a_link_to_a_file_stays_one_when_the_key_is_replaced(key_file, tmp_path):
    """Others may find the file by its own name."""
    link = tmp_path / "link"
    link.symlink_to(key_file)
    shared_key.write(link, (StoredKey(OTHER, None),), replace=True)
    assert link.is_symlink() and shared_key.read(key_file)[0].secret == OTHER


def test_a_file_that_a_killed_process_left_behind_is_not_in_the_way(key_file):
    key_file.with_name(f".{key_file.name}.{os.getpid()}").touch()
    shared_key.write(key_file, (StoredKey(OTHER, None),), replace=True)
    assert shared_key.read(key_file)[0].secret == OTHER


LINE = ONE.hex()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "# nothing\n",
        LINE[:-1],
        LINE[:-2],
        LINE + "00",
        "x" + LINE[1:],
        f"{LINE} soon",
        f"{LINE} 1 2",
        f"{LINE} 99999999999",
        *(f"{LINE}\n{OTHER.hex()} {end}" for end in ("nan", "inf", "1e300", "-5")),
        f"{LINE}\n" * 9,
        f"{LINE}\n" + "#" * 70000,
        "\xff" * 64,
    ],
)
def test_content_that_is_no_key(key_file, content):
    key_file.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match="key file") as caught:
        current()
    assert LINE[:20] not in str(caught.value)


def test_an_old_key_ends(key_file):
    now = time.time()
    old = (StoredKey(ONE, None), StoredKey(OTHER, now + 1000), StoredKey(b"\x03" * 32, now - 1))
    shared_key.write(key_file, old, replace=True)
    assert current().fingerprints == fingerprints(ONE, OTHER)
    new = shared_key.rotated(old, b"\x04" * 32, now + 500)
    assert [one.secret[0] for one in new] == [4, 1, 2]
    assert [one.until for one in new] == [None, now + 500, now + 500]
    (last,) = shared_key.rotated(new, b"\x05" * 32, time.time())  # no older one outlives it
    assert last == StoredKey(b"\x05" * 32, None)


def fails_at(path: Path, monkeypatch, act) -> None:
    """Have looks at a file do something else first."""
    real = shared_key._open_without_waiting

    def opener(of, flags):
        if of == str(path):
            act()
        return real(of, flags)

    monkeypatch.setattr(shared_key, "_open_without_waiting", opener)


def denied() -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_home_that_cannot_be_read_any_more(key_file, monkeypatch):
    """As when a ticket for a home on the network ends: running processes keep the key."""
    assert current().fingerprints == fingerprints(ONE)
    fails_at(key_file, monkeypatch, denied)
    shared_key._watched(key_file)._look()
    assert current().fingerprints == fingerprints(ONE)
    shared_key.forget()  # as a process that starts now
    with pytest.raises(ConfigError, match="cannot be read"):
        current()


def test_a_file_that_cannot_be_opened_for_a_moment(key_file, monkeypatch, caplog):
    """As on a network, just after it was replaced."""
    assert current().fingerprints == fingerprints(ONE)
    shared_key.write(key_file, (StoredKey(OTHER, None),), replace=True)

    def stale(*_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(shared_key, "_open_without_waiting", stale)
        shared_key._watched(key_file)._look()
        assert current().fingerprints == fingerprints(ONE)
    shared_key._watched(key_file)._look()
    assert current().fingerprints == fingerprints(OTHER)
    assert not caplog.text


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda path: path.unlink(), "was removed"),
        (lambda path: path.parent.rename(path.parent.with_name("other")), "was removed"),
        (lambda path: None, "Permission denied"),
    ],
    ids=["removed", "moved", "of root"],
)
def test_why_the_key_in_use_is_not_that_of_the_file_is_logged_once(
    key_file, monkeypatch, caplog, act, told
):
    assert current().fingerprints == fingerprints(ONE)
    shared_key.write(key_file, (StoredKey(OTHER, None),), replace=True)
    act(key_file)
    if told == "Permission denied":  # `sudo install -m 600` writes a file that is root's
        fails_at(key_file, monkeypatch, denied)
    for _ in range(4):
        shared_key._watched(key_file)._look()
    assert current().fingerprints == fingerprints(ONE)
    (record,) = caplog.records
    assert told in record.message and "keeps the key that it has" in record.message


def test_an_earlier_look_that_ends_later_brings_no_old_keys_back(key_file, monkeypatch):
    read = shared_key._read
    assert current().fingerprints == fingerprints(ONE)
    watched = shared_key._watched(key_file)

    def slow(*args):
        monkeypatch.setattr(shared_key, "_read", read)
        found = read(*args)
        shared_key.write(key_file, (StoredKey(OTHER, None),), replace=True)
        watched._look()
        return found

    key_file.write_text(key_file.read_text() + "# longer\n")
    monkeypatch.setattr(shared_key, "_read", slow)
    watched._look()
    assert current().fingerprints == fingerprints(OTHER)


async def test_without_descriptors_the_key_stays_as_it_is(key_file, monkeypatch, caplog):
    """And is right again with the first look that has one."""

    def none_left(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(shared_key, "_open_without_waiting", none_left)
        with pytest.raises(ConfigError, match="Too many open files"):
            current()
    await shared_key.refresh(config.load())
    assert current().fingerprints == fingerprints(ONE)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(shared_key, "_open_without_waiting", none_left)
        for _ in range(3):
            shared_key._watched(key_file)._look()
        assert current().fingerprints == fingerprints(ONE)
    assert not caplog.text


async def test_a_home_that_hangs_takes_one_thread_and_stops_nothing(
    key_file, monkeypatch, maybe_plain, caplog
):
    goes_on = threading.Event()
    looks = []

    def hang() -> None:
        looks.append(threading.current_thread())
        goes_on.wait(PATIENCE_SECONDS)

    monkeypatch.setattr(shared_key, "_RECHECK_SECONDS", 0.0)
    monkeypatch.setattr(shared_key, "_HUNG_SECONDS", 0.2)
    monkeypatch.setattr(shared_key, "_SILENT_SECONDS", 0.2)
    async with listen("fabric://127.0.0.1", echo) as listener:
        fails_at(key_file, monkeypatch, hang)
        for _ in range(3):
            assert await ask(listener.contact_address, ONE, maybe_plain) == "ping\n"
            comm = await connect(listener.contact_address)
            await comm.close()
    assert len(looks) == 1
    assert (
        caplog.text.count("does not answer. Until that is mended, this process keeps the key") == 1
    )
    goes_on.set()
    looks[0].join(PATIENCE_SECONDS)
    assert not looks[0].is_alive()


# ---- who may connect


async def ask(address: str, secret: bytes | None, security, **variables: str) -> str:
    if secret is not None:
        variables["DASK_FABRIC__AUTH__KEY"] = secret.hex()
    return await asking.ask(address, security, variables)


@pytest.fixture
def maybe_plain():
    """In the place of `maybe_security`: no certificates."""

    class Files:
        use = False
        tls_ca_file = tls_client_cert = tls_client_key = ""

    return Files


@pytest.mark.parametrize(
    ("of_server", "of_client", "expected", "logged"),
    [
        (ONE, ONE, "ping", ""),
        (ONE, None, "the client has none: give it the same key file", "the client has none"),
        (None, ONE, "which has none: give the server's process", "this client has a key"),
        (ONE, OTHER, "both need the same key file", "both need the same key file"),
    ],
)
async def test_both_sides_need_the_key(
    scheme, listen_args, maybe_security, caplog, of_server, of_client, expected, logged
):
    secret = of_server and of_server.hex()
    with dask.config.set({"fabric.auth.key": secret}):
        async with listen(f"{scheme}://127.0.0.1", echo, **listen_args) as listener:
            said = await ask(listener.contact_address, of_client, maybe_security)
    assert expected in said
    assert logged in caplog.text


async def test_large_frames_travel_as_without_a_key(scheme, listen_args, connect_args):
    if scheme not in ("fabric", "fabric+ucx"):
        pytest.skip("its frames stay on the stream")
    with dask.config.set({"fabric.auth.key": ONE.hex()}):
        async with listen(f"{scheme}://127.0.0.1", echo, **listen_args) as listener:
            comm = await connect(listener.contact_address, **connect_args)
            await comm.write(to_serialize(np.arange(10**6)))
            assert (await comm.read() == np.arange(10**6)).all()
            assert comm.paths["host"] == ("ucx" if scheme == "fabric+ucx" else "cma")
            await comm.close()


async def test_a_listener_needs_a_key_that_can_be_used(key_file):
    """It fails at once, and not with the first client."""
    key_file.chmod(0o644)
    with pytest.raises(ConfigError, match="may be used by others"):
        async with listen("fabric://127.0.0.1", echo):
            pass


async def test_a_key_file_that_is_spoiled_or_removed_opens_nothing(key_file, maybe_plain, caplog):
    """And a cluster that runs goes on: it keeps its key, and says why."""

    async def goes_on():
        assert current().fingerprints == fingerprints(ONE)
        comm = await connect(listener.contact_address)
        await comm.close()
        assert "ping" not in await ask(listener.contact_address, None, maybe_plain)
        assert await ask(listener.contact_address, ONE, maybe_plain) == "ping\n"

    async with listen("fabric://127.0.0.1", echo) as listener:
        watched = shared_key._watched(key_file)
        key_file.chmod(0o644)
        for _ in range(2):
            await asyncio.to_thread(watched._look)
        await goes_on()
        with pytest.raises(ConfigError, match="may be used by others"):
            shared_key.read(key_file)  # as a process that starts now
        key_file.write_text("nonsense\n")
        key_file.chmod(0o600)
        await asyncio.to_thread(watched._look)
        await goes_on()
        told = [record.message for record in caplog.records if "keeps the key" in record.message]
        assert len(told) == 2
        assert "may be used by others" in told[0] and "hexadecimal" in told[1]
        key_file.unlink()
        await asyncio.to_thread(watched._look)
        await goes_on()


async def test_a_client_that_has_not_seen_yet_that_the_key_was_replaced_tries_again(key_file):
    """It looked less than a second ago, and the server after that."""
    with dask.config.set({"fabric.auth.key": OTHER.hex()}):
        async with listen("fabric+tcp://127.0.0.1", echo) as listener:
            with dask.config.set({"fabric.auth.key": None}):
                with pytest.raises(FatalCommClosedError, match="same key file"):
                    await connect(listener.contact_address, timeout=PATIENCE_SECONDS)
                shared_key.write(key_file, (StoredKey(OTHER, None),), replace=True)
                shared_key._recent = config.load(), time.monotonic() + 1000
                comm = await connect(listener.contact_address, timeout=PATIENCE_SECONDS)
                await comm.close()


async def test_a_key_is_replaced_while_processes_run(key_file, maybe_plain):
    async with listen("fabric://127.0.0.1", echo) as listener:
        address = listener.contact_address
        comm = await connect(address)
        old = shared_key.read(key_file)
        new = shared_key.rotated(old, OTHER, time.time() + 1000)
        shared_key.write(key_file, new, replace=True)
        a_second_passes()
        for secret in (ONE, OTHER):  # the old one is accepted for a while
            assert await ask(address, secret, maybe_plain) == "ping\n"
        await comm.write("still open")
        assert await comm.read() == "still open"
        await comm.close()


async def test_a_changed_answer_of_the_server_ends_the_connect_with_the_reason(key_file):
    async def change(reader, writer):
        to, out = await asyncio.open_connection(*listener.get_host_port())
        out.write(await reader.read(1 << 16))
        challenge = bytearray(await to.read(1 << 16))
        challenge[-1] ^= 1  # of its proof
        writer.write(challenge)
        await reader.read()
        for one in (out, writer):
            one.close()
            await one.wait_closed()
        is_over.set()

    is_over = asyncio.Event()
    async with listen("fabric+tcp://127.0.0.1", echo) as listener:
        between = await asyncio.start_server(change, "127.0.0.1")
        host, port = between.sockets[0].getsockname()
        with pytest.raises(FatalCommClosedError, match="UnprovenError: the server has not proved"):
            await connect(f"fabric+tcp://{host}:{port}", timeout=PATIENCE_SECONDS)
        await is_over.wait()
        between.close()


@pytest.mark.parametrize("scheme", ["fabric", "fabric+tcp"])
async def test_an_idle_listener_knows_that_its_key_was_replaced(key_file, scheme, maybe_plain):
    """Before the first connection since then: the old key opens nothing, and the new one does."""
    async with listen(f"{scheme}://127.0.0.1", echo) as listener:
        shared_key.write(key_file, (StoredKey(OTHER, None),), replace=True)
        a_second_passes()
        assert "ping" not in await ask(listener.contact_address, ONE, maybe_plain)
        shared_key.write(key_file, (StoredKey(ONE, None),), replace=True)
        a_second_passes()
        assert await ask(listener.contact_address, ONE, maybe_plain) == "ping\n"


async def test_a_loop_whose_turns_take_longer_than_a_look_lasts_accepts(key_file, monkeypatch):
    monkeypatch.setattr(shared_key, "_RECHECK_SECONDS", 0.0)
    async with listen("fabric://127.0.0.1", echo) as listener:
        comm = await connect(listener.contact_address, timeout=PATIENCE_SECONDS)
        await comm.close()


async def test_an_idle_client_knows_that_its_key_was_replaced(key_file):
    assert current().fingerprints == fingerprints(ONE)
    shared_key.write(key_file, (StoredKey(OTHER, None),), replace=True)
    a_second_passes()
    with pytest.raises(OSError, match="fabric:"):
        await connect(f"fabric://127.0.0.1:{unused_port()}", timeout=0.1)
    assert current().fingerprints == fingerprints(OTHER)


async def test_a_listener_that_has_no_key_learns_of_one(no_home, maybe_plain):
    async with listen("fabric://127.0.0.1", echo) as listener:
        assert await ask(listener.contact_address, None, maybe_plain) == "ping\n"
        shared_key.write(shared_key.default_file(), (StoredKey(ONE, None),), replace=False)
        a_second_passes()
        assert "ping" not in await ask(listener.contact_address, None, maybe_plain, HOME="/none")


def test_a_cluster_finds_the_key_by_itself(key_file):
    """Nannies and workers are processes of their own."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, protocol="fabric", **LOCAL_CLUSTER) as made,
        Client(made) as client,
    ):
        assert client.submit(sum, [1, 2]).result(timeout=PATIENCE_SECONDS) == 3
        told = client.run(_keys_of_this_process)
    assert set(told.values()) == {fingerprints(ONE)}


def _keys_of_this_process() -> tuple[str, ...]:
    from dask_fabric import config
    from dask_fabric.comm.network import shared_key

    return shared_key.current(config.load()).fingerprints
