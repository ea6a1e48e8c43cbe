"""A key that both sides must have: proofs are made, checked and bound to one connection."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_fabric.errors import ProtocolError, RefusedError
from dask_fabric.wire import authentication
from dask_fabric.wire.authentication import KEY_TLS, PLAIN, TLS, Keys
from dask_fabric.wire.foreign import MAGIC, PREAMBLE_BYTES
from dask_fabric.wire.handshake import Handshake, State
from dask_fabric.wire.hello import KEY, NONCE_BYTES, Hello

ONE, OTHER = bytes(range(32)), bytes(range(32, 64))
KEYS, OTHERS = Keys([ONE]), Keys([OTHER])


def hello(keys: Keys | None, pid: int) -> Hello:
    if keys is None:
        return Hello(pid=pid)
    return Hello(pid=pid, authentication=(KEY,), keys=keys.fingerprints)


def client(keys: Keys | None = KEYS) -> Handshake:
    return Handshake(hello(keys, 1), False, keys=keys)


def server(keys: Keys | None = KEYS, **kwargs) -> Handshake:
    return Handshake(hello(keys, 2), True, keys=keys, **kwargs)


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
        if not used:
            break
    return to.data_to_send()


def conversation(one: Handshake, two: Handshake, step: int = 1 << 20) -> list[bytes]:
    """All messages of a client and a server, until neither sends anything."""
    said = [one.data_to_send()]
    sides = [two, one]
    while said[-1]:
        said.append(pass_on(said[-1], sides[(len(said) - 1) % 2], step))
    return said[:-1]


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_both_have_the_key(step):
    one, two = client(), server()
    said = conversation(one, two, step)
    assert len(said) == 4 and one.done and two.done
    assert one.state is two.state is State.DONE
    assert one.peer.pid == 2 and two.peer.pid == 1


def test_the_server_acts_on_a_client_only_after_its_proof():
    answered = []
    two = server(answer=lambda peer: answered.append(peer) or hello(KEYS, 3))
    one = client()
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
    assert KEYS.prove(KEYS.fingerprints[0], "client", b"hello", b"challenge").hex() == (
        "50aad43ddfaeea1058fc6dae9f7fe1d24a2598c6b879805739692983386fde22"
    )
    assert KEYS.prove(KEYS.fingerprints[0], "tls client", b"hello", b"challenge").hex() == (
        "c68331c806f7702b6c8120cd63ebd084b45dbce9d912bf51eae4c80c3f94449d"
    )
    assert KEYS.prove(KEYS.fingerprints[0], "key tls client", b"hello", b"challenge").hex() == (
        "998887c13db3b6b7c3330d7e7e151a34671f4fa6237b4ce92553fa59dfed111c"
    )
    assert KEYS.derive(KEYS.fingerprints[0], "certificate").hex() == (
        "8ec58a39edd55b0cf14a35e2c10f9a8f7bf09c114e0d4128ea93376eb987342b"
    )


@pytest.mark.parametrize("insides", [*itertools.permutations((PLAIN, TLS, KEY_TLS), 2)])
def test_proofs_are_worth_nothing_inside_of_something_else(insides):
    """Somebody between the two has TLS of another kind with each, or with one side only."""
    one, two = (
        Handshake(hello(KEYS, number), bool(number), keys=KEYS, inside=inside)
        for number, inside in enumerate(insides)
    )
    assert "not proved" in str(failure(one, pass_on(one.data_to_send(), two)))


# ---- who is refused


def failure(side: Handshake, data: bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        side.receive(data)
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


def test_messages_are_not_kept_when_the_handshake_is_over():
    """Connections are many; a hello may have 64 KiB."""
    sides = client(), server()
    said = conversation(*sides)
    for side in sides:
        kept = [one for one in vars(side).values() if isinstance(one, bytes) and len(one) > 20]
        assert not kept and side._exchange is None
    assert len(said) == 4


def test_a_replay():
    """What a client has once sent proves nothing in another connection."""
    first, _, proof, answer = conversation(client(), server())
    two = server(answer=untouched, refuse=untouched)
    pass_on(first, two)
    assert "not proved" in str(failure(two, proof))
    one = client()
    pass_on(pass_on(one.data_to_send(), server()), one)
    assert "not proved" in str(failure(one, answer))


def test_a_reflection():
    """The proofs of a server are none of a client."""
    two = server(answer=untouched, refuse=untouched)
    challenge = msgpack.unpackb(pass_on(client().data_to_send(), two)[PREAMBLE_BYTES:])
    assert "not proved" in str(failure(two, message({"proof": challenge["proof"]})))
    one = client()
    own = pass_on(pass_on(one.data_to_send(), server()), one)
    assert "not proved" in str(failure(one, hello(KEYS, 2).encode() + own))


def test_a_plain_hello_in_the_place_of_a_challenge():
    one = client()
    one.data_to_send()
    assert "has none" in str(failure(one, hello(None, 2).encode()))


def test_a_hello_that_loses_its_authentication_on_the_way():
    assert "the client has none" in str(failure(server(), hello(None, 1).encode()))


@pytest.mark.parametrize("number", range(4))
def test_no_byte_of_any_message_can_be_changed(number):
    """Then at least one side fails, and the one that is deceived is never done."""
    length = len(conversation(client(), server())[number])
    for place in range(length):
        sides = [server(), client()]
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


@given(st.binary(max_size=200), st.integers(0, 3))
def test_random_messages_never_raise_anything_else(body, stage):
    data = struct.pack("<8sBBHI", MAGIC, 1, 0, 0, len(body) or 1) + body
    one, two = client(), server()
    said = one.data_to_send()
    sides = [two, one]
    for turn in range(stage):
        said = pass_on(said, sides[turn % 2])
    side = sides[stage % 2]
    try:
        side.receive(data)
    except ProtocolError:
        assert side.state is State.FAILED
    assert not side.done


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
