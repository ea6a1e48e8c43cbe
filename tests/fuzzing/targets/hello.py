"""What a stranger sends: hellos, the handshake around them, and proofs that it has the key."""

from __future__ import annotations

import types

import msgpack

from dask_fabric.comm import dask_handshake
from dask_fabric.errors import FabricError
from dask_fabric.wire import authentication, hello
from dask_fabric.wire.authentication import KEY_BYTES, PLAIN, Keys, Munge
from dask_fabric.wire.foreign import HTTP_METHODS, PREAMBLE_BYTES, TLS_ALERT, TLS_HANDSHAKE
from dask_fabric.wire.handshake import Handshake
from dask_fabric.wire.hello import NONCE_BYTES, PREAMBLE, Hello

from ..pieces import Input, cut, part
from ..registry import target

# Both sides draw the same nonces each time, so that an input does the same each time.
authentication.os = types.SimpleNamespace(urandom=bytes)

KEYS = Keys([b"k" * KEY_BYTES, b"o" * KEY_BYTES])
BOOT = "b" * 36
FULL = Hello(
    scheme="fabric+ucx",
    pid=7,
    paths=("stream", "shm", "cma", "ucx"),
    memory=("host", "cuda"),
    features=("chunks",),
    limits={"frames": 1 << 20, "header": 1 << 20, "message": 1 << 30},
    refused={"ofi": "not built"},
    boot=BOOT,
    described={
        "shm": {"id": 77},
        "cma": {"address": 4096, "nonce": bytes(16)},
        "ucx": {
            "version": "1.20.0",
            "transports": ["tcp", "rc_mlx5", "posix", "cuda_ipc"],
            "address": b"a" * 300,
            "token": 9,
            "scope": {"ipc": "a", "user": "b"},
        },
    },
    address="127.0.0.1:8786",
    ends=("127.0.0.1 1", "127.0.0.1 2"),
)
KEYED = Hello(authentication=("key",), keys=KEYS.fingerprints)
HELLOS = [Hello(), FULL, KEYED, Hello(error="no"), Hello(paths=("stream", "other"))]
WORDS = [name.encode() for name in hello.FIELD_CHECKS]
WORDS += [b"stream", b"cma", b"shm", b"ucx", b"fabric+ucx", b"cuda", b"end", b"nonce", b"address"]
WORDS += [b"version", b"transports", b"token", b"scope", b"id", BOOT.encode()]


def body_of(one: Hello) -> bytes:
    return one.encode()[PREAMBLE_BYTES:]


def message(body: bytes) -> bytes:
    return PREAMBLE.pack(hello.MAGIC, 1, 0, 0, len(body)) + body


@target([body_of(one) for one in HELLOS], WORDS, share=3)
def hello_body(data: bytes) -> None:
    """A hello without its preamble; what decodes and is encoded again decodes the same."""
    found = Hello.decode(data)
    try:
        again = found.encode()
    except ValueError:  # with what the peer left out it is larger than the protocol allows
        assert len(data) > hello.HELLO_BYTES_LIMIT // 2
        return
    assert Hello.decode(again[PREAMBLE_BYTES:]) == found


_FOREIGN = [*HTTP_METHODS, *TLS_HANDSHAKE, *TLS_ALERT, b"SSH-2.0-x", b"HTTP/1.1 400 No"]
_FOREIGN.append(bytes.fromhex("40000000000000000200000000000000"))  # Dask's tcp://


@target(
    [bytes([side, 2]) + one.encode() for side in (0, 1) for one in HELLOS]
    + [bytes([side, 0]) + start for side in (0, 1) for start in _FOREIGN],
    [hello.MAGIC, *WORDS],
    share=2,
)
def handshake(data: bytes) -> None:
    """The stream of a peer, in pieces, up to the end of the handshake or of the stream."""
    given = Input(data)
    side, choice = given.number() & 1, given.number()
    hello._decoded_small.cache_clear()
    ours = Handshake(FULL, bool(side), refuse=_refuse, answer=lambda peer: FULL)
    try:
        ours.data_to_send()
        _receive(ours, cut(given.rest(), choice))
        if not ours.done:
            ours.receive_eof()
    except FabricError as error:
        assert isinstance(error.reply, bytes)
        raise


def _refuse(peer: Hello) -> str:
    return "nobody of that name" if "refuse" in peer.refused else ""


def _receive(ours: Handshake, pieces) -> None:
    for piece in pieces:
        while piece and not ours.done:
            used = ours.receive(piece)
            ours.data_to_send()
            piece = piece[used:]
    ours.data_to_send()


# In a message of the peer this becomes the right proof, as a peer would make it that has the key.
_PROOF = b"\xc4\x20" + b"P" * 32
_PROOF_BODY = b"\x81\xa5proof" + _PROOF
_CHALLENGE_BODY = msgpack.packb(
    {"challenge": bytes(NONCE_BYTES), "key": KEYS.fingerprints[0], "proof": _PROOF[2:]}
)
_REFUSAL = body_of(Hello(error="another key"))


@target(
    [
        b"\1" + part(body_of(KEYED)) + part(_PROOF_BODY) + part(b"rest"),
        b"\1" + part(body_of(KEYED)) + part(_REFUSAL),
        b"\1" + part(body_of(FULL)),
        b"\0" + part(_CHALLENGE_BODY) + part(body_of(KEYED)) + part(_PROOF_BODY),
        b"\0" + part(_CHALLENGE_BODY) + part(_REFUSAL),
        b"\0" + part(body_of(FULL)) + part(_PROOF_BODY),
    ],
    [_PROOF, b"\xa9challenge", b"\xa3key", b"\xa5proof", *map(str.encode, KEYS.fingerprints)],
    share=2,
)
def key_proofs(data: bytes) -> None:
    """A peer that has the key, and puts its proofs where it likes."""
    given = Input(data)
    hello._decoded_small.cache_clear()
    server_side = bool(given.number() & 1)
    ours = Handshake(KEYED, server_side, method=KEYS)
    exchanged = [] if server_side else [ours.data_to_send()]
    roles = ["", "client", ""] if server_side else ["challenge", "", "server"]
    for role in roles:
        body = given.part()
        if role and _PROOF in body:
            covered = [*exchanged, bytes(NONCE_BYTES)] if role == "challenge" else exchanged
            proof = KEYS.prove(KEYS.fingerprints[0], PLAIN, role, *covered)
            body = body.replace(_PROOF, _PROOF[:2] + proof)
        exchanged.append(message(body))
        left = exchanged[-1]
        while left and not ours.done:
            left = left[ours.receive(left) :]
            if answer := ours.data_to_send():
                exchanged += [answer] if server_side else []  # no proof covers a client's proof
                break


class _Daemon:
    """A daemon that finds every credential good, and made for something else."""

    @staticmethod
    def encode(payload: bytes) -> bytes:
        return b"MUNGE:AAAA:"

    @staticmethod
    def decode(credential: bytes, side: str) -> bytes:
        return credential


@target([msgpack.packb({"credential": b"MUNGE:AwQFAAD/:"})], [b"credential", b"MUNGE:"])
def credential(data: bytes) -> None:
    """A message with a credential of MUNGE, before munged sees it."""
    Munge(_Daemon()).prover(PLAIN).check("client", data, b"hello", b"challenge")


@target(
    [
        msgpack.packb({"compression": None, "python": (3, 11, 7), "pickle-protocol": 5}),
        msgpack.packb({"compression": "lz4", "python": [3, 10], "pickle-protocol": 4, "x": {}}),
    ],
    [b"compression", b"python", b"pickle-protocol"],
)
def dask_greeting(data: bytes) -> None:
    """Dask's own handshake, the first message after the hellos."""
    dask_handshake._decode.cache_clear()
    dask_handshake.decode(data, [])
