"""MUNGE: whom munged vouches for, with a real daemon, and with a stand-in for libmunge."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
import threading
import time
from types import SimpleNamespace

import dask
import pytest
from distributed import Client, LocalCluster
from distributed.comm import connect, listen
from distributed.comm.core import FatalCommClosedError
from distributed.utils import wait_for
from tests.comm import munged as real
from tests.comm.asking import ask, echo
from tests.conftest import LOCAL_CLUSTER

from dask_fabric import config
from dask_fabric.comm.backend import FabricBackend
from dask_fabric.comm.network import authentication, munge, shared_key
from dask_fabric.errors import ConfigError, RefusedError, UnavailableError
from dask_fabric.wire.authentication import Munge

PATIENCE_SECONDS = 30
NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", "--clear-groups")
METHOD, SOCKET, KEY = (f"DASK_FABRIC__AUTH__{name}" for name in ("METHOD", "MUNGE_SOCKET", "KEY"))

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@pytest.fixture(autouse=True)
def no_home(tmp_path, monkeypatch):
    """No key, and nothing known of any munged."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MUNGE_SOCKET", raising=False)
    shared_key.forget()
    munge.forget()
    yield
    shared_key.forget()
    munge.forget()


@pytest.fixture(scope="module")
def site():
    """A munged that no test stops."""
    with real.running() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def other_site():
    """One with another MUNGE key."""
    with real.running(key=b"o" * 1024) as daemon:
        yield daemon


@pytest.fixture
def daemon():
    """One that a test may stop."""
    with real.running() as daemon:
        yield daemon


def using(socket: str | None, **more):
    """The configuration of a process that uses MUNGE."""
    more = {f"fabric.auth.{name.replace('_', '-')}": value for name, value in more.items()}
    named = {"fabric.auth.method": "munge", "fabric.auth.munge-socket": socket}
    return dask.config.set({**named, **more})


# ---- one daemon


def test_a_credential_of_our_own(site):
    one, two = munge.Munged(site.socket), munge.Munged(site.socket)
    made = one.encode(b"payload")
    assert made.startswith(b"MUNGE:") and len(made) < 400
    assert two.decode(made, "client") == b"payload"
    assert one.user == two.user == os.geteuid()
    with pytest.raises(RefusedError, match="used before, so somebody repeats"):
        one.decode(made, "client")


def test_a_credential_of_another_site(site, other_site):
    made = munge.Munged(site.socket).encode(b"payload")
    with pytest.raises(RefusedError, match=r"munged of the server does not accept .*of the client "
                       r"\(Invalid credential\): munged of both hosts needs the same"):  # fmt: skip
        munge.Munged(other_site.socket).decode(made, "client")


def test_what_is_no_credential(site):
    with pytest.raises(RefusedError, match="does not accept the credential of the server"):
        munge.Munged(site.socket).decode(b"MUNGE:AAAA:", "server")


@needs_root
def test_a_credential_of_another_user(site):
    made = site.credential(*AS_NOBODY, text="payload").encode()
    with pytest.raises(RefusedError, match=rf"user .*{NOBODY}\)?, and the server of user root"):
        munge.Munged(site.socket).decode(made, "client")


@needs_root
def test_another_user_cannot_decode_a_credential_of_ours(site):
    made = munge.Munged(site.socket).encode(b"payload").decode()
    for before, expected in ((AS_NOBODY, b"Unauthorized"), ((), b"Success")):
        command = [*before, "unmunge", f"--socket={site.socket}"]
        read = subprocess.run(command, input=made.encode(), capture_output=True, timeout=60)
        assert expected in read.stdout + read.stderr


@pytest.mark.parametrize(("shift", "order"), [("-300s", "ahead of"), ("+300s", "behind")])
def test_clocks_that_differ(site, shift, order):
    """The other host's clock is behind or ahead, so that ours is ahead or behind."""
    if shutil.which("faketime") is None:
        pytest.skip("no faketime here: apt-get install faketime")
    made = munge.Munged(site.socket).encode(b"payload")
    with real.running(start=("faketime", "-f", shift)) as elsewhere:
        reader = munge.Munged(elsewhere.socket)
        with pytest.raises(RefusedError, match=rf"the client's host is (299|30\d) s {order} the"):
            reader.decode(made, "client")


def test_no_daemon(tmp_path):
    with pytest.raises(UnavailableError, match=r"munged makes no credential \(Failed to access"):
        munge.Munged(str(tmp_path / "none")).encode(b"payload")


# ---- a stand-in for libmunge


class Library:
    """libmunge with a daemon that gives the same answer to every decode."""

    def __init__(self, code: int = 0, user: int | None = None, times=(100, 100)) -> None:
        self.encode_code = 0
        self.code = code
        self.user = user
        self.times = dict(zip((6, 7), times, strict=True))
        self.options: dict[int, object] = {}
        self.made: dict[int, ctypes.Array] = {}
        self.payloads: dict[bytes, bytes] = {}
        self.context_count = 0

    def munge_ctx_create(self):
        self.context_count += 1
        return 1

    def munge_ctx_destroy(self, context):
        self.context_count -= 1

    def munge_ctx_set(self, context, option, value):
        self.options[option] = value.value
        return 0

    def munge_ctx_get(self, context, option, seconds):
        seconds._obj.value = self.times[option]
        return 0

    def munge_ctx_strerror(self, context):
        return None

    def munge_strerror(self, code):
        return b"error %d of munge.h" % code if code else b"Success"

    def munge_encode(self, credential, context, payload, nbytes):
        made = b"MUNGE:%d:" % len(self.payloads)
        self.payloads[made] = payload[:nbytes]
        self._give(credential, made)
        return self.encode_code

    def munge_decode(self, credential, context, payload, length, user, group):
        content = self.payloads.get(credential, b"")
        is_own = len(self.payloads) == 1  # the probe
        self._give(payload, content)
        length._obj.value = len(content)
        user._obj.value = os.geteuid() if is_own or self.user is None else self.user
        return 0 if is_own else self.code

    def _give(self, pointer, content):
        buffer = ctypes.create_string_buffer(content)
        pointer._obj.value = ctypes.addressof(buffer)
        self.made[ctypes.addressof(buffer)] = buffer

    def free(self, pointer):
        if pointer.value:
            del self.made[pointer.value]


@pytest.fixture
def library(monkeypatch):
    def use(**options) -> Library:
        made = Library(**options)
        monkeypatch.setattr(munge, "_library", lambda: made)
        return made

    return use


def test_what_a_credential_is_made_with(library):
    used = library()
    daemon = munge.Munged("/run/other")
    assert daemon.decode(daemon.encode(b"payload"), "client") == b"payload"
    assert used.options == {4: 60, 8: b"/run/other", 9: os.geteuid()}
    assert not used.made and not used.context_count  # all memory is given back


MEANINGS = {
    14: "needs the same MUNGE key",
    15: "the clock of the client's host is 100 s behind the other, and at most 60 s",
    16: "the clock of the client's host is 100 s behind the other",
    17: "somebody repeats what others send",
    18: "it is of another user",
}


@pytest.mark.parametrize("code", range(8, 19))
def test_what_munged_says_of_a_credential(library, code):
    used = library(code=code, times=(100, 200))
    daemon = munge.Munged(None)
    with pytest.raises(RefusedError, match=rf"\(error {code} of munge.h\)") as caught:
        daemon.decode(daemon.encode(b"payload"), "client")
    assert MEANINGS.get(code, "") in str(caught.value)
    assert not used.made and not used.context_count


@pytest.mark.parametrize("code", range(1, 8))
def test_what_is_the_fault_of_munged(library, code):
    """A retry may help, unlike with a credential that is not valid."""
    daemon = munge.Munged(None)
    used = library(code=code)
    with pytest.raises(UnavailableError, match=rf"munged fails \(error {code} of munge.h\)"):
        daemon.decode(daemon.encode(b"payload"), "client")
    used.encode_code = code
    with pytest.raises(UnavailableError, match=rf"munged makes no credential \(error {code} of"):
        daemon.encode(b"payload")


def test_another_user_by_the_word_of_munged(library):
    library(user=os.geteuid() + 1)
    daemon = munge.Munged(None)
    made = daemon.encode(b"payload")
    with pytest.raises(RefusedError, match="both sides must be processes of one user"):
        daemon.decode(made, "server")


def test_a_daemon_that_does_not_know_its_own_credential(library, monkeypatch):
    used = library()
    monkeypatch.setattr(used, "munge_decode", lambda *arguments: 14)
    with pytest.raises(UnavailableError, match="cannot decode its own credential"):
        munge.Munged(None).probe()


def test_no_memory(library, monkeypatch):
    monkeypatch.setattr(library(), "munge_ctx_create", lambda: None)
    with pytest.raises(UnavailableError, match="no memory"):
        munge.Munged(None).probe()


@pytest.fixture
def no_library(monkeypatch):
    munge._library.cache_clear()
    monkeypatch.setattr(munge, "LIBRARY", "libmunge-of-no-host.so.2")
    yield
    munge._library.cache_clear()


async def test_a_host_without_libmunge(no_library):
    text = r"fabric.auth.method is munge, and libmunge.* cannot be loaded .*package libmunge2"
    with using(None):
        with pytest.raises(ConfigError, match=text):
            async with listen("fabric://127.0.0.1", echo):
                pass
        with pytest.raises(ConfigError, match=text):
            await connect("fabric://127.0.0.1:9")
        with pytest.raises(ConfigError, match=text):
            munge.user(config.load())


# ---- the configuration


def test_where_the_socket_is(monkeypatch):
    def socket() -> str | None:
        return munge._socket(config.load())

    assert socket() is None
    monkeypatch.setenv("MUNGE_SOCKET", "/run/by/environment")
    assert socket() == "/run/by/environment"
    with using("/run/by/configuration"):
        assert socket() == "/run/by/configuration"


def test_munge_satisfies_those_who_require_authentication(site):
    with using(site.socket, require=True):
        assert isinstance(authentication.current(config.load()), Munge)
        assert munge.user(config.load()) == os.geteuid()


def test_munge_does_not_encrypt():
    text = r"fabric.auth.encrypt is true, and fabric.auth.method is munge"
    with using(None, encrypt=True), pytest.raises(ConfigError, match=text):
        config.load()


# ---- connections


@pytest.mark.clusters
@pytest.mark.parametrize("of_client", ["same site", "other site", "other user", "key", "none"])
async def test_who_may_connect(
    scheme, listen_args, maybe_security, caplog, site, other_site, of_client
):
    variables, expected = {
        "same site": ({METHOD: "munge", SOCKET: site.socket}, "ping"),
        "other site": ({METHOD: "munge", SOCKET: other_site.socket}, "the same MUNGE key"),
        "other user": ({METHOD: "munge", SOCKET: site.socket}, "it is of another user"),
        "key": ({KEY: "ab" * 32}, "and the client uses a key instead: set the same"),
        "none": ({}, "and the client uses none: set the same fabric.auth.method"),
    }[of_client]
    user = NOBODY if of_client == "other user" else None
    if user and os.geteuid() != 0:
        pytest.skip("only root can be another user")
    with using(site.socket):
        async with listen(f"{scheme}://127.0.0.1", echo, **listen_args) as listener:
            said = await ask(listener.contact_address, maybe_security, variables, user)
    assert expected in said
    assert of_client == "same site" or expected in caplog.text


async def test_a_server_without_munge(site, caplog):
    variables = {METHOD: "munge", SOCKET: site.socket}
    for secret, expected in (
        (None, "this client requires MUNGE of the server"),
        ("ab" * 32, "and the client uses MUNGE: set the same fabric.auth.method"),
    ):
        with dask.config.set({"fabric.auth.key": secret}):
            async with listen("fabric://127.0.0.1", echo) as listener:
                assert expected in await ask(listener.contact_address, None, variables)
        assert expected in caplog.text
        caplog.clear()


async def test_many_connect_at_once(site):
    """More than there are threads."""

    async def use(address: str) -> object:
        comm = await connect(address, timeout=PATIENCE_SECONDS)
        await comm.write("ping")
        try:
            return await comm.read()
        finally:
            comm.abort()

    with using(site.socket):
        async with listen("fabric://127.0.0.1", echo) as listener:
            addresses = [listener.contact_address] * 30
            assert await asyncio.gather(*map(use, addresses)) == ["ping"] * 30


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(munge, "_PATIENCE_SECONDS", 0.2)


async def test_a_daemon_that_hangs_from_the_start(daemon, impatient):
    daemon.send(signal.SIGSTOP)
    with using(daemon.socket):
        with pytest.raises(ConfigError, match=r"munged did not answer within 0\.2 s"):
            async with listen("fabric://127.0.0.1", echo):
                pass
        with pytest.raises(ConfigError, match=r"munged did not answer within 0\.2 s"):
            await connect("fabric://127.0.0.1:9")
        with pytest.raises(ConfigError, match=r"munged did not answer within 0\.2 s"):
            await asyncio.to_thread(munge.user, config.load())


@pytest.mark.parametrize(
    ("scheme", "number"), [("fabric", signal.SIGSTOP), ("fabric+tcp", signal.SIGKILL)]
)
async def test_a_daemon_that_fails_later(daemon, impatient, scheme, number, caplog):
    """Dask tries again, until its timeout; open comms stay open, and a restart is enough."""
    with using(daemon.socket):
        async with listen(f"{scheme}://127.0.0.1", echo) as listener:
            comm = await connect(listener.contact_address, timeout=PATIENCE_SECONDS)
            daemon.send(number)
            opening = asyncio.create_task(connect(listener.contact_address, timeout=600))
            said = "the client cannot authenticate: munged"
            here = f"Cannot connect to {listener.contact_address}: ProtocolError: {said}"
            await reached(lambda: here in caplog.text)
            assert f"the client refused the connection: {said}" in caplog.text
            opening.cancel()
            await comm.write("still open")
            assert await comm.read() == "still open"
            if number == signal.SIGSTOP:
                daemon.send(signal.SIGCONT)
            else:
                daemon.stop()
                daemon.start()
            again = await connect(listener.contact_address, timeout=PATIENCE_SECONDS)
            again.abort()
            comm.abort()


async def test_the_daemon_of_the_server_hangs(site, daemon, impatient):
    """The client learns why."""
    with using(daemon.socket):
        listener = await listen("fabric+tcp://127.0.0.1", echo)
    daemon.send(signal.SIGSTOP)
    variables = {METHOD: "munge", SOCKET: site.socket}
    said = await ask(listener.contact_address, None, variables)
    assert "the server cannot authenticate: munged did not answer" in said
    listener.stop()


class Slow:
    """A daemon whose threads wait until they may go on."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.call_count = 0

    def encode(self, payload: bytes) -> bytes:
        self.call_count += 1
        assert self.goes_on.wait(PATIENCE_SECONDS)
        return b"MUNGE:" + payload.hex().encode() + b":"

    def decode(self, credential: bytes, side: str) -> bytes:
        self.call_count += 1
        assert self.goes_on.wait(PATIENCE_SECONDS)
        return bytes.fromhex(credential[6:-1].decode())


@pytest.fixture
def slow(monkeypatch):
    daemon = Slow()
    method = Munge(daemon, munge.Munged(None).elsewhere)

    async def prepare(settings):
        return method

    monkeypatch.setattr(authentication, "current", lambda settings: method)
    monkeypatch.setattr(authentication, "prepare", prepare)
    yield daemon
    daemon.goes_on.set()


async def reached(condition) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("scheme", ["fabric", "fabric+tcp"])
async def test_nothing_waits_for_munged_in_the_event_loop(slow, scheme):
    async with listen(f"{scheme}://127.0.0.1", echo) as listener:
        opening = asyncio.create_task(connect(listener.contact_address, timeout=PATIENCE_SECONDS))
        await reached(lambda: slow.call_count == 1)
        assert not opening.done()  # and this loop runs
        slow.goes_on.set()
        comm = await opening
        await comm.write("ping")
        assert await comm.read() == "ping"
        await comm.close()


def test_a_unix_socket_whose_server_waits_for_munged_is_not_silent():
    """Else the client would try TCP, and wait there anew."""
    given_up = []
    for received in (0, 100):
        channel = SimpleNamespace(
            closed=False,
            statistics=lambda received=received: {"bytes_received": received},
            give_up=lambda seconds, received=received: given_up.append(received),
        )
        FabricBackend()._connector._doubt(channel, "127.0.0.1:1", 0.0)
    assert given_up == [0]


async def test_a_server_that_goes_while_a_client_waits_for_munged(slow):
    listener = await listen("fabric+tcp://127.0.0.1", echo)
    opening = asyncio.create_task(connect(listener.contact_address, timeout=2))
    await reached(lambda: slow.call_count == 1)
    listener.stop()
    slow.goes_on.set()
    with pytest.raises(OSError, match="Timed out"):
        await wait_for(opening, PATIENCE_SECONDS)


async def test_a_client_that_gives_up_while_it_waits_for_munged(slow):
    async with listen("fabric://127.0.0.1", echo) as listener:
        opening = asyncio.create_task(connect(listener.contact_address, timeout=PATIENCE_SECONDS))
        await reached(lambda: slow.call_count == 1)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening


async def test_the_time_of_the_handshake_is_over_before_munged_answers(slow, caplog):
    with dask.config.set({"fabric.timeouts.handshake": "100ms"}):
        listener = await listen("fabric+tcp://127.0.0.1", echo)
    # The client has more time: the server is the first to give up.
    with pytest.raises(OSError, match="Timed out"):
        await connect(listener.contact_address, timeout=2)
    assert "no handshake within 0.1 s" in caplog.text
    slow.goes_on.set()
    listener.stop()


def test_a_forked_child_has_threads_of_its_own(site):
    with using(site.socket):
        assert munge.user(config.load()) == os.geteuid()
        child = os.fork()
        if not child:
            munge.forget()
            os._exit(munge.user(config.load()) != os.geteuid())
        assert os.waitpid(child, 0)[1] == 0


# ---- clusters


def test_a_cluster(site):
    """Nannies and workers are processes of their own."""
    with (
        using(site.socket),
        LocalCluster(n_workers=2, threads_per_worker=1, protocol="fabric", **LOCAL_CLUSTER) as made,
        Client(made) as client,
    ):
        assert client.submit(sum, [1, 2]).result(timeout=PATIENCE_SECONDS) == 3
        told = client.run(_method_of_this_process)
        assert set(told.values()) == {("munge", os.geteuid())} and len(told) == 2
        with using(None, method="key"), pytest.raises(FatalCommClosedError, match="uses none"):
            Client(made.scheduler_address, timeout=PATIENCE_SECONDS)


def _method_of_this_process() -> tuple[str, int]:
    from dask_fabric import config
    from dask_fabric.comm.network import authentication, munge

    settings = config.load()
    return authentication.current(settings).name, munge.user(settings)
