"""Proofs by a key that both sides have, or by MUNGE: made, checked and bound to one connection."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import re
import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.wire.realm import new_method

from dask_fabric.errors import ProtocolError, RefusedError
from dask_fabric.wire import authentication
from dask_fabric.wire.authentication import (
    CREDENTIAL_BYTES_LIMIT,
    KEY_TLS,
    PLAIN,
    TLS,
    Keys,
    Method,
    Munge,
)
from dask_fabric.wire.foreign import MAGIC, PREAMBLE_BYTES
from dask_fabric.wire.handshake import Handshake, State
from dask_fabric.wire.hello import KEY, MUNGE, NONCE_BYTES, Hello

ONE, OTHER = bytes(range(32)), bytes(range(32, 64))
KEYS, OTHERS = Keys([ONE]), Keys([OTHER])
# The proof is none of this connection, or of this place in it.
WRONG = "not proved|was made for something else|has sent something else"
METHODS = {
    "key": lambda: KEYS,
    "munge": lambda: new_method(is_slow=False),
    "munge, slow": lambda: new_method(is_slow=True),
}


@pytest.fixture(params=METHODS)
def method(request) -> Method:
    return METHODS[request.param]()


def hello(method: Method | None, pid: int) -> Hello:
    if method is None:
        return Hello(pid=pid)
    return Hello(pid=pid, authentication=(method.name,), keys=method.fingerprints)


def client(method: Method | None = KEYS) -> Handshake:
    return Handshake(hello(method, 1), False, method=method)


def server(method: Method | None = KEYS, **kwargs) -> Handshake:
    return Handshake(hello(method, 2), True, method=method, **kwargs)


def untouched(peer: Hello) -> Hello:
    raise AssertionError("the server has acted on a hello that is not proved")


def message(content: dict) -> bytes:
    body = msgpack.packb(content)
    return struct.pack("<8sBBHI", MAGIC, 1, 0, 0, len(body)) + body


def pass_on(data: bytes, to: Handshake, step: int = 1 << 20) -> bytes:
    """Feed a side in pieces, and give what it sends then."""
    rest = data
    while rest:
        used = to.receive(rest[:step])
        rest = rest[used:]
        while to.work is not None:
            assert to.state is State.WORK and to.receive(b"more") == 0
            assert to.data_to_send() == b""
            to.go_on(done(to.work()))
        if not used:
            break
    return to.data_to_send()


def done(awaitable):
    """Give the result of an awaitable that never waits."""
    with pytest.raises(StopIteration) as caught:
        awaitable.send(None)
    return caught.value.value


def conversation(one: Handshake, two: Handshake, step: int = 1 << 20) -> list[bytes]:
    """All messages of a client and a server, until neither sends anything."""
    said = [one.data_to_send()]
    sides = [two, one]
    while said[-1]:
        said.append(pass_on(said[-1], sides[(len(said) - 1) % 2], step))
    return said[:-1]


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_both_sides_prove_themselves(step, method):
    one, two = client(method), server(method)
    said = conversation(one, two, step)
    assert len(said) == 4 and one.done and two.done
    assert one.state is two.state is State.DONE
    assert one.peer.pid == 2 and two.peer.pid == 1


def test_the_server_acts_on_a_client_only_after_its_proof(method):
    answered = []
    two = server(method, answer=lambda peer: answered.append(peer) or hello(method, 3))
    one = client(method)
    proof = pass_on(pass_on(one.data_to_send(), two), one)
    assert not answered and not two.done
    pass_on(pass_on(proof, two), one)
    assert [peer.pid for peer in answered] == [1] and one.peer.pid == 3


def test_a_key_that_is_replaced():
    """The current key of the server is used if the client has it, else an older one."""
    both = Keys([OTHER, ONE])
    for keys, expected in ((KEYS, KEYS), (OTHERS, OTHERS), (both, OTHERS)):
        said = conversation(client(keys), server(both))
        challenge = msgpack.unpackb(said[1][PREAMBLE_BYTES:])
        assert challenge["key"] == expected.fingerprints[0]


def mac(role: str, *messages: bytes) -> bytes:
    """A proof with the key `ONE`, by the words of the specification."""
    whole = b"dask-fabric key 1 " + role.encode()
    for one in messages:
        whole += struct.pack("<Q", len(one)) + one
    return hmac.digest(ONE, whole, "sha256")


def test_proofs_are_as_specified(monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda count: b"\x07" * count)
    fingerprint = hashlib.sha256(b"dask-fabric fingerprint 1 " + ONE).digest()[:8].hex()
    assert KEYS.fingerprints == (fingerprint,)
    first, challenge, proof, answer = conversation(client(), server())
    assert first.endswith(b"\xa5nonce\xc4\x20" + b"\x07" * NONCE_BYTES)
    nonce = b"\x07" * NONCE_BYTES
    assert challenge == message(
        {"challenge": nonce, "key": fingerprint, "proof": mac("challenge", first, nonce)}
    )
    assert proof == message({"proof": mac("client", first, challenge)})
    server_hello = hello(KEYS, 2).encode()
    sealed = message({"proof": mac("server", first, challenge, server_hello)})
    assert answer == server_hello + sealed


def test_vectors_of_the_documentation():
    assert KEYS.fingerprints == ("99c3988a7f223696",)
    assert KEYS.prove(KEYS.fingerprints[0], PLAIN, "client", b"hello", b"challenge").hex() == (
        "50aad43ddfaeea1058fc6dae9f7fe1d24a2598c6b879805739692983386fde22"
    )
    assert KEYS.prove(KEYS.fingerprints[0], TLS, "client", b"hello", b"challenge").hex() == (
        "c68331c806f7702b6c8120cd63ebd084b45dbce9d912bf51eae4c80c3f94449d"
    )
    assert KEYS.prove(KEYS.fingerprints[0], KEY_TLS, "client", b"hello", b"challenge").hex() == (
        "998887c13db3b6b7c3330d7e7e151a34671f4fa6237b4ce92553fa59dfed111c"
    )
    assert KEYS.derive(KEYS.fingerprints[0], "certificate").hex() == (
        "8ec58a39edd55b0cf14a35e2c10f9a8f7bf09c114e0d4128ea93376eb987342b"
    )


@pytest.mark.parametrize("insides", [*itertools.permutations((PLAIN, TLS, KEY_TLS), 2)])
def test_proofs_are_worth_nothing_inside_of_something_else(insides, method):
    """Somebody between the two has TLS of another kind with each, or with one side only."""
    one, two = (
        Handshake(hello(method, number), bool(number), method=method, inside=inside)
        for number, inside in enumerate(insides)
    )
    challenge = pass_on(one.data_to_send(), two)
    if method is not KEYS:  # else the challenge is a proof already
        one, challenge = two, pass_on(challenge, one)
    assert re.search(WRONG, str(failure(one, challenge)))


# ---- who is refused


def failure(side: Handshake, data: bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        pass_on(data, side)
    assert side.state is State.FAILED and not side.done and side.data_to_send() == b""
    return caught.value


@pytest.mark.parametrize("keys", [None, OTHERS])
def test_a_client_without_the_key(keys):
    one = client(keys)
    error = failure(server(answer=untouched, refuse=untouched), one.data_to_send())
    assert isinstance(error, RefusedError) and KEYS.fingerprints[0] in str(error)
    told = failure(one, error.reply)
    assert isinstance(told, RefusedError) and "the same key file" in str(told)


def test_a_server_without_a_key():
    one, two = client(), server(None)
    error = failure(one, pass_on(one.data_to_send(), two))
    assert isinstance(error, RefusedError) and "the same key file" in str(error)
    assert b"the same key file" in error.reply  # the server, which is done, reads records now


def test_a_stranger_who_claims_the_key():
    """He knows the fingerprint, which anybody may know."""
    two = server(answer=untouched, refuse=untouched)
    pass_on(hello(KEYS, 1).encode(), two)
    assert "not proved" in str(failure(two, message({"proof": bytes(32)})))
    one = client()
    one.data_to_send()
    forged = {"challenge": bytes(32), "key": KEYS.fingerprints[0], "proof": bytes(32)}
    error = failure(one, message(forged))
    assert "not proved" in str(error)
    other = server()
    pass_on(client().data_to_send(), other)  # it waits for a proof, and understands a refusal
    assert "refused the connection" in str(failure(other, error.reply))


@pytest.mark.parametrize("fingerprint", [[], {}, None, 7, b"x", OTHERS.fingerprints[0]])
def test_a_challenge_for_something_that_is_no_key_of_ours(fingerprint):
    one = client()
    one.data_to_send()
    forged = {"challenge": bytes(32), "key": fingerprint, "proof": bytes(32)}
    assert "challenge is invalid" in str(failure(one, message(forged)))


def test_messages_are_not_kept_when_the_handshake_is_over(method):
    """Connections are many; a hello may have 64 KiB."""
    sides = client(method), server(method)
    said = conversation(*sides)
    for side in sides:
        kept = [one for one in vars(side).values() if isinstance(one, bytes) and len(one) > 20]
        assert not kept and side._exchange is None
    assert len(said) == 4


def test_a_replay(method):
    """What a client has once sent proves nothing in another connection."""
    first, _, proof, answer = conversation(client(method), server(method))
    two = server(method, answer=untouched, refuse=untouched)
    pass_on(first, two)
    assert re.search(f"{WRONG}|was used before", str(failure(two, proof)))
    one = client(method)
    pass_on(pass_on(one.data_to_send(), server(method)), one)
    assert re.search(f"{WRONG}|was used before", str(failure(one, answer)))


def test_a_proof_that_nobody_has_checked_yet_is_of_its_connection(method):
    """Somebody keeps it from the server that it is for, and carries it to another."""
    one, two = client(method), server(method, answer=untouched, refuse=untouched)
    first = one.data_to_send()
    proof = pass_on(pass_on(first, server(method)), one)
    pass_on(first, two)
    assert re.search(WRONG, str(failure(two, proof)))


def test_a_reflection(method):
    """The proofs of a server are none of a client, and the other way round."""
    one = client(method)
    own = pass_on(pass_on(one.data_to_send(), server(method)), one)
    assert re.search(WRONG, str(failure(one, hello(method, 2).encode() + own)))
    one, two = client(method), server(method)
    first = one.data_to_send()
    answer = pass_on(pass_on(pass_on(first, two), one), two)
    sealed = answer[len(hello(method, 2).encode()) :]
    other = server(method, answer=untouched, refuse=untouched)
    pass_on(first, other)
    assert re.search(WRONG, str(failure(other, sealed)))


def test_the_proof_in_a_challenge_is_none_of_a_client():
    two = server(answer=untouched, refuse=untouched)
    challenge = msgpack.unpackb(pass_on(client().data_to_send(), two)[PREAMBLE_BYTES:])
    assert "not proved" in str(failure(two, message({"proof": challenge["proof"]})))


def test_a_plain_hello_in_the_place_of_a_challenge(method):
    one = client(method)
    one.data_to_send()
    expected = {KEY: "has none", MUNGE: "requires MUNGE of the server"}[method.name]
    assert expected in str(failure(one, hello(None, 2).encode()))


def test_a_hello_that_loses_its_authentication_on_the_way(method):
    expected = {KEY: "the client has none", MUNGE: "the client uses none"}[method.name]
    assert expected in str(failure(server(method), hello(None, 1).encode()))


@pytest.mark.parametrize("number", range(4))
def test_no_byte_of_any_message_can_be_changed(number, method):
    """Then at least one side fails, and the one that is deceived is never done."""
    length = len(conversation(client(method), server(method))[number])
    for place in range(length):
        sides = [server(method), client(method)]
        said = sides[1].data_to_send()
        failed = False
        for turn in range(4):
            if turn == number:
                said = said[:place] + bytes([said[place] ^ 1]) + said[place + 1 :]
            try:
                said = pass_on(said, sides[turn % 2])
            except ProtocolError:
                failed = True
                break
            if not said:
                break  # it waits for more, until the handshake's time is over
        assert failed or not said, place
        assert not (sides[0].done and sides[1].done), place
        # A client's hello and challenge that were changed never get the server to act.
        assert number > 2 or not sides[0].done, place


@given(st.binary(max_size=200), st.integers(0, 3), st.sampled_from(sorted(METHODS)))
def test_random_messages_never_raise_anything_else(body, stage, name):
    method = METHODS[name]()
    data = struct.pack("<8sBBHI", MAGIC, 1, 0, 0, len(body) or 1) + body
    one, two = client(method), server(method)
    said = one.data_to_send()
    sides = [two, one]
    for turn in range(stage):
        said = pass_on(said, sides[turn % 2])
    side = sides[stage % 2]
    try:
        pass_on(data, side)
    except ProtocolError:
        assert side.state is State.FAILED
    assert not side.done


# ---- MUNGE


MUNGES = [pytest.param(is_slow, id="slow" if is_slow else "at once") for is_slow in (False, True)]


@pytest.mark.parametrize("is_slow", MUNGES)
@pytest.mark.parametrize(
    ("other", "expected"),
    [({"user": 1001}, "client is of another user"), ({"key": b"another"}, "client is invalid")],
)
def test_another_user_and_another_site(is_slow, other, expected):
    """Whoever connects, both are told."""
    for of_client, of_server in (({}, other), (other, {})):
        one = client(new_method(is_slow, **of_client))
        two = server(new_method(is_slow, **of_server), answer=untouched, refuse=untouched)
        error = failure(two, pass_on(pass_on(one.data_to_send(), two), one))
        assert isinstance(error, RefusedError) and expected in str(error)
        told = failure(one, error.reply)
        assert isinstance(told, RefusedError) and expected in str(told)


@pytest.mark.parametrize("is_slow", MUNGES)
def test_a_server_of_another_user(is_slow):
    """It accepts the client, as somebody between the two may have it."""
    method, other = new_method(is_slow), new_method(is_slow, user=1001)
    other._daemon.decode = method._daemon.decode
    one, two = client(method), server(other)
    error = failure(one, pass_on(pass_on(pass_on(one.data_to_send(), two), one), two))
    assert isinstance(error, RefusedError) and "the server is of another user" in str(error)
    assert error.reply.endswith(b"the server is of another user")  # a record: it reads these now


@pytest.mark.parametrize("is_slow", MUNGES)
@pytest.mark.parametrize(
    ("stopped_at", "fails", "expected"),
    [
        (1, "client", "the client cannot authenticate: munged does not answer"),
        (2, "server", "the server cannot authenticate: munged does not answer"),
        (3, "client", "the client cannot authenticate: munged does not answer"),
    ],
)
def test_munged_ends_while_two_connect(is_slow, stopped_at, fails, expected):
    """A retry may help, so this is no refusal; the other side is told."""
    of_client, of_server = (new_method(is_slow) for _ in range(2))
    sides = {"server": server(of_server), "client": client(of_client)}
    said = sides["client"].data_to_send()
    for turn in range(stopped_at):
        said = pass_on(said, sides["client" if turn % 2 else "server"])
    {"client": of_client, "server": of_server}[fails]._daemon.is_running = False
    error = failure(sides[fails], said)
    assert type(error) is ProtocolError and str(error) == expected
    if stopped_at < 3:  # else the server reads records already
        other = sides["server" if fails == "client" else "client"]
        told = failure(other, error.reply)
        assert isinstance(told, RefusedError) and expected in str(told)
    assert expected.encode() in error.reply


@pytest.mark.parametrize(
    ("of_client", "of_server", "expected"),
    [
        (MUNGE, KEY, "the client uses MUNGE: set the same fabric.auth.method"),
        (KEY, MUNGE, "requires authentication by MUNGE, and the client uses a key instead"),
        (None, MUNGE, "requires authentication by MUNGE, and the client uses none"),
    ],
)
def test_two_methods_do_not_meet(of_client, of_server, expected):
    made = {MUNGE: new_method(False), KEY: KEYS, None: None}
    one, two = client(made[of_client]), server(made[of_server], answer=untouched, refuse=untouched)
    error = failure(two, one.data_to_send())
    assert isinstance(error, RefusedError) and expected in str(error)
    told = failure(one, error.reply)
    assert isinstance(told, RefusedError) and expected in str(told)


def test_a_server_without_munge():
    one, two = client(new_method(False)), server(None)
    error = failure(one, pass_on(one.data_to_send(), two))
    assert isinstance(error, RefusedError) and "set fabric.auth.method: munge" in str(error)
    assert b"set fabric.auth.method: munge" in error.reply


@pytest.mark.parametrize(
    "content",
    [
        {"credential": b"MUNGE:" + b"A" * (CREDENTIAL_BYTES_LIMIT - 7) + b":!"},
        {"credential": b"MUNGE:" + b"A" * 65000 + b":"},
        {"credential": "MUNGE:AAAA:"},
        {"credential": b"MUNGE:AA\0AA:"},
        {"credential": b"MUNGE:AAAA:\n"},
        {"credential": b"MUNGE:AAAA"},
        {"credential": b""},
        {"credential": b"MUNGE:AAAA:", "more": 1},
        {"credential": None},
        {"proof": bytes(32)},
        {},
    ],
)
def test_munged_never_sees_what_has_not_the_form_of_a_credential(content):
    method = new_method(False)
    two = server(method, answer=untouched, refuse=untouched)
    pass_on(client(method).data_to_send(), two)
    method._daemon.decode = None
    error = failure(two, message(content))
    assert re.search(f"{WRONG}|cannot be decoded|lacks the field", str(error))


@pytest.mark.parametrize("content", [{}, {"method": "key"}, {"method": [MUNGE]}, {"key": "x"}])
def test_a_challenge_that_is_none_of_munge(content):
    one = client(new_method(False))
    one.data_to_send()
    error = failure(one, message({"challenge": bytes(32), **content}))
    assert "challenge is invalid" in str(error)


@pytest.mark.parametrize("nonce", [b"short", "x" * 32, None, 5])
def test_a_challenge_without_a_nonce(nonce, method):
    one = client(method)
    one.data_to_send()
    content = {"challenge": nonce, "key": KEYS.fingerprints[0], "method": MUNGE}
    assert "challenge is invalid" in str(failure(one, message(content)))


def payload(role: str, *messages: bytes) -> bytes:
    """What a credential contains, by the words of the specification."""
    words = whole = b"dask-fabric munge 1 " + role.encode()
    for one in messages:
        whole += struct.pack("<Q", len(one)) + one
    return words + b" " + hashlib.sha256(whole).digest()


class Shows:
    """A daemon whose credentials can be read."""

    def encode(self, content: bytes) -> bytes:
        return b"MUNGE:" + content.hex().encode() + b":"

    def decode(self, credential: bytes, side: str) -> bytes:
        return bytes.fromhex(credential[6:-1].decode())


def credential(*parts) -> bytes:
    return message({"credential": Shows().encode(payload(*parts))})


def test_credentials_are_as_specified(monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda count: b"\x07" * count)
    method = Munge(Shows())
    first, challenge, proof, answer = conversation(client(method), server(method))
    assert first.endswith(b"\xa5nonce\xc4\x20" + b"\x07" * NONCE_BYTES)
    assert challenge == message({"challenge": b"\x07" * NONCE_BYTES, "method": "munge"})
    assert proof == credential("client", first, challenge)
    server_hello = hello(method, 2).encode()
    assert answer == server_hello + credential("server", first, challenge, server_hello)


def test_vector_of_the_documentation_for_munge():
    made = Munge(Shows()).prover(TLS).prove("client", b"hello", b"challenge")
    assert made == credential("tls client", b"hello", b"challenge")
    assert payload("tls client", b"hello", b"challenge")[-32:].hex() == VECTOR


VECTOR = "f4e16666eec5ea67ce3c48a5a422bc3e48c32861c1cf406e2b261c66808f4771"


# ---- keys


def test_keys_are_not_shown():
    assert ONE.hex() not in repr(KEYS) and KEYS.fingerprints[0] in repr(KEYS)


def test_hellos_with_different_nonces_are_decoded_once():
    one, two = client().data_to_send(), client().data_to_send()
    assert one != two
    assert authentication.has_nonce(one)
    first, second = (Handshake(hello(None, 2), True) for _ in range(2))
    first.receive(one)
    second.receive(two)
    assert first.peer is second.peer
