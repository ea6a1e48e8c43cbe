"""Proofs of who is at the other end of a connection, without I/O.

Theory of operation
-------------------
A server that has a method of authentication believes nothing of a client, and does nothing for it,
before the client has proved who it is; and the client believes no hello that is not proved. There
are four messages, each with the preamble of a hello:

========  ============================================================================
from      message
========  ============================================================================
client    its hello, with the name of its method, and a nonce at the end
server    the challenge: a nonce, and what the method adds
client    a proof over the client's hello and the challenge
server    its hello, and a proof over all messages before it and this hello
========  ============================================================================

A proof is made over the name of its role and over whole messages, so it is worth nothing in another
connection (nonces), in the other direction or place (roles), or with a byte changed. `Exchange`
keeps this order. What a proof is, a `Method` says:

- `Keys`: both sides have the same key. A proof is an HMAC-SHA-256. The client's hello has the
  fingerprints of its keys; the challenge has that of the key that both have, and a proof already.
- `Munge`: both sides are processes of one user, by the word of the daemon munged on each host. A
  proof is a credential of MUNGE, with a hash in it. Making and checking one may take time, and is
  done elsewhere: see `Method.elsewhere`.

The specification is ``docs/wire-protocol.md``, with test vectors.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgpack

from dask_fabric.errors import ProtocolError, RefusedError, UnprovenError
from dask_fabric.wire.foreign import MAGIC
from dask_fabric.wire.hello import (
    KEY,
    MAJOR_VERSION,
    MINOR_VERSION,
    MUNGE,
    NONCE_BYTES,
    PREAMBLE,
    Hello,
    has_nonce,
    unpack_map,
)

KEY_BYTES = 32
KEY_COUNT_LIMIT = 8  # that a process accepts: the current one, and older ones for a while
_PROOF_BYTES = 32
_FINGERPRINT_BYTES = 8
CREDENTIAL_BYTES_LIMIT = 4096  # of MUNGE; ours have less than 400
# What a connection is inside of: nothing, TLS by certificates, TLS by the key.
PLAIN, TLS, KEY_TLS = _INSIDES = "", "tls ", "key tls "
_ROLES = {
    (method, inside, role): f"dask-fabric {method} 1 {inside}{role}".encode()
    for method in (KEY, MUNGE)
    for inside in _INSIDES
    for role in ("challenge", "client", "server")
}
_ADVICE = "see `dask fabric key --help`"
_OTHER_METHOD = "set the same fabric.auth.method in Dask's configuration on both sides"

Work = Callable[[], Any]


class Prover(Protocol):
    """One side's proofs on one connection, by one method."""

    def challenge(self, client: Hello, message: bytes, nonce: bytes) -> Mapping[str, object]:
        """As the server, give what a challenge contains beside its nonce.

        Raises
        ------
        RefusedError
            This client cannot prove itself by this method.
        """

    def take(self, content: Mapping[str, Any], message: bytes, nonce: bytes) -> None:
        """As the client, check what a challenge contains beside its nonce.

        Raises
        ------
        ProtocolError
        """

    def prove(self, role: str, *messages: bytes) -> bytes:
        """Give the proof of a role over whole messages, as a message.

        Raises
        ------
        UnavailableError
            It cannot be made now.
        """

    def check(self, role: str, body: bytes, *messages: bytes) -> None:
        """Check the peer's proof, in the *body* of a message.

        Raises
        ------
        ProtocolError
            It is wrong.
        UnavailableError
            It cannot be checked now.
        """


class Method(Protocol):
    """How a process proves who it is, to every peer.

    Attributes
    ----------
    name : str
        In a hello.
    fingerprints : tuple of str
        Of its keys, if it has some.
    elsewhere : callable or None
        For a method whose proofs may take time: called with work, a function without arguments.
        It gives an awaitable, and this a function that returns the result of the work or raises
        its error. Never raises itself.
    requires : str
        What a client with this method needs of a server that has none: completes a sentence.
    """

    name: str
    fingerprints: tuple[str, ...]
    elsewhere: Callable[[Work], Awaitable[Work]] | None
    requires: str

    def prover(self, inside: str) -> Prover:
        """Give what makes and checks proofs on one connection."""

    def is_proof(self, body: bytes) -> bool:
        """Whether this is a proof, and nothing else such as a refusal."""


# ---- by a key


class Keys:
    """The keys of a process, the current one first: a `Method`.

    Parameters
    ----------
    secrets : sequence of bytes
        One to eight of `KEY_BYTES` random bytes each.

    Attributes
    ----------
    fingerprints : tuple of str
        What may be shown of each key: the first 8 bytes, in hexadecimal, of the SHA-256 of a
        constant and the key.
    """

    name = KEY
    elsewhere: Callable[[Work], Awaitable[Work]] | None = None
    requires = (
        "this client has a key, and so requires one of the server, which has none: give the "
        "server's process the same key file, see `dask fabric key --help`"
    )

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._secrets = {_fingerprint(secret): secret for secret in secrets}
        self.fingerprints = tuple(self._secrets)
        # Copied for each proof, which takes half the time of a new one.
        self._macs = {
            fingerprint: hmac.new(secret, digestmod="sha256")
            for fingerprint, secret in self._secrets.items()
        }

    def __repr__(self) -> str:
        return f"<Keys {', '.join(self.fingerprints)}>"  # never the secrets

    def common(self, client: Hello) -> str:
        """As a server, give the fingerprint of the key to use with a client.

        Raises
        ------
        RefusedError
            The client has none of these keys.
        """
        needed = f"this server requires the key {self.fingerprints[0]}"
        if MUNGE in client.authentication and KEY not in client.authentication:
            raise RefusedError(f"{needed}, and the client uses MUNGE: {_OTHER_METHOD}")
        if KEY not in client.authentication:
            raise RefusedError(
                f"{needed}, and the client has none: give it the same key file, {_ADVICE}"
            )
        for fingerprint in self.fingerprints:
            if fingerprint in client.keys:
                return fingerprint
        others = ", ".join(client.keys[:KEY_COUNT_LIMIT])
        raise RefusedError(
            f"{needed}, and the client has another ({others}): both need the same key file, "
            f"{_ADVICE}"
        )

    def prover(self, inside: str) -> Prover:
        return _KeyProver(self, inside)

    def is_proof(self, body: bytes) -> bool:
        return len(body) == len(_PROOF) + _PROOF_BYTES and body.startswith(_PROOF)

    def prove(self, fingerprint: str, inside: str, role: str, *messages: bytes) -> bytes:
        """Give the proof of a role over whole messages.

        Parameters
        ----------
        fingerprint : str
            Of one of these keys.
        inside : str
            `PLAIN`, `TLS` or `KEY_TLS`.
        role : str
            ``challenge``, ``client`` or ``server``.
        """
        mac = self._macs[fingerprint].copy()
        mac.update(_transcript(_ROLES[KEY, inside, role], messages))
        return mac.digest()

    def derive(self, fingerprint: str, purpose: str) -> bytes:
        """Derive 32 bytes for a purpose from a key, which they do not tell.

        This is HKDF-Expand with SHA-256 (RFC 5869), for which a key of 32 random bytes needs no
        extraction.

        Parameters
        ----------
        fingerprint : str
            Of one of these keys.
        purpose : str
            Different purposes give independent bytes. It must not begin with the name of a role.
        """
        info = f"dask-fabric key 1 {purpose}".encode()
        return hmac.digest(self._secrets[fingerprint], info + b"\x01", "sha256")

    def has(self, fingerprint: object) -> bool:
        """Whether one of these keys has this fingerprint, which may be anything."""
        return isinstance(fingerprint, str) and fingerprint in self._secrets


@functools.lru_cache(maxsize=64)
def _fingerprint(secret: bytes) -> str:
    digest = hashlib.sha256(b"dask-fabric fingerprint 1 " + secret).digest()
    return digest[:_FINGERPRINT_BYTES].hex()


class _KeyProver:
    """The proofs of one side by the key that both have."""

    def __init__(self, keys: Keys, inside: str) -> None:
        self._keys = keys
        self._inside = inside
        self._fingerprint = ""

    def challenge(self, client: Hello, message: bytes, nonce: bytes) -> Mapping[str, object]:
        self._fingerprint = self._keys.common(client)
        return {"key": self._fingerprint, "proof": self._prove("challenge", message, nonce)}

    def take(self, content: Mapping[str, Any], message: bytes, nonce: bytes) -> None:
        if not self._keys.has(content.get("key")):
            raise ProtocolError("the server's challenge is invalid")
        self._fingerprint = str(content["key"])
        self._compare("challenge", content.get("proof"), message, nonce)

    def prove(self, role: str, *messages: bytes) -> bytes:
        return _PROOF_MESSAGE + self._prove(role, *messages)

    def check(self, role: str, body: bytes, *messages: bytes) -> None:
        if not self._keys.is_proof(body):
            raise ProtocolError("a proof was expected, and the peer sent something else")
        self._compare(role, body[len(_PROOF) :], *messages)

    def _prove(self, role: str, *messages: bytes) -> bytes:
        return self._keys.prove(self._fingerprint, self._inside, role, *messages)

    def _compare(self, role: str, proof: object, *messages: bytes) -> None:
        wanted = self._prove(role, *messages)
        if type(proof) is not bytes or not hmac.compare_digest(proof, wanted):
            side = "client" if role == "client" else "server"
            raise UnprovenError(
                f"the {side} has not proved that it has the key {self._fingerprint}: its key is "
                "another, or somebody between the two changes what they send"
            )


# ---- by MUNGE


class Daemon(Protocol):
    """What makes and decodes credentials. Both may take time."""

    def encode(self, payload: bytes) -> bytes:
        """Make a credential of this process.

        Raises
        ------
        UnavailableError
            munged does not answer, or fails.
        """

    def decode(self, credential: bytes, side: str) -> bytes:
        """Give the payload of a credential, once it is known that its maker is of our user.

        Parameters
        ----------
        credential : bytes
            Untrusted, but of the right form.
        side : str
            Who has sent it, for the error.

        Raises
        ------
        RefusedError
            It is not valid here, or of another user.
        UnavailableError
            munged does not answer, or fails.
        """


class Munge:
    """The user of a process, by the word of munged: a `Method`.

    Parameters
    ----------
    daemon : Daemon
    elsewhere : callable or None
        See `Method`.
    """

    name = MUNGE
    fingerprints: tuple[str, ...] = ()
    requires = (
        "this client requires MUNGE of the server, which does not use it: set fabric.auth.method: "
        "munge in Dask's configuration of the server's process"
    )

    def __init__(
        self, daemon: Daemon, elsewhere: Callable[[Work], Awaitable[Work]] | None = None
    ) -> None:
        self._daemon = daemon
        self.elsewhere = elsewhere

    def prover(self, inside: str) -> Prover:
        return _MungeProver(self._daemon, inside)

    def is_proof(self, body: bytes) -> bool:
        return body.startswith(_CREDENTIAL)


class _MungeProver:
    """The proofs of one side by credentials, each for one role in one connection."""

    def __init__(self, daemon: Daemon, inside: str) -> None:
        self._daemon = daemon
        self._inside = inside

    def challenge(self, client: Hello, message: bytes, nonce: bytes) -> Mapping[str, object]:
        if MUNGE in client.authentication:
            return {"method": MUNGE}
        has = "a key instead" if KEY in client.authentication else "none"
        raise RefusedError(
            f"this server requires authentication by MUNGE, and the client uses {has}: "
            f"{_OTHER_METHOD} (munge)"
        )

    def take(self, content: Mapping[str, Any], message: bytes, nonce: bytes) -> None:
        if content.get("method") != MUNGE:
            raise ProtocolError("the server's challenge is invalid")

    def prove(self, role: str, *messages: bytes) -> bytes:
        credential = self._daemon.encode(self._payload(role, messages))
        return _message({"credential": credential})

    def check(self, role: str, body: bytes, *messages: bytes) -> None:
        content = unpack_map(body, f"the {role}'s credential")
        credential = content.get("credential")
        if (
            len(content) != 1
            or type(credential) is not bytes
            or len(credential) > CREDENTIAL_BYTES_LIMIT
            or not _FORM_OF_CREDENTIALS.fullmatch(credential)
        ):
            raise ProtocolError(f"the {role} has sent something else than a credential of MUNGE")
        if self._daemon.decode(credential, role) != self._payload(role, messages):
            raise UnprovenError(
                f"the {role}'s credential was made for something else: somebody between the two "
                "changes what they send"
            )

    def _payload(self, role: str, messages: Sequence[bytes]) -> bytes:
        """Give the words of the role, in which no other program signs, and a hash."""
        words = _ROLES[MUNGE, self._inside, role]
        return words + b" " + hashlib.sha256(_transcript(words, messages)).digest()


# ---- their order


class Exchange:
    """One side's proofs on one connection: made and checked in the order of the messages.

    Parameters
    ----------
    method : Method
    inside : str
        `PLAIN`, `TLS` or `KEY_TLS`. A proof is worth nothing inside of something else. Else
        somebody could carry the proof of a client that does not encrypt, or that believes a
        certificate of his, to a server that encrypts by the key.
    """

    def __init__(self, method: Method, inside: str = PLAIN) -> None:
        self._prover = method.prover(inside)
        self._client = self._challenge = b""  # whole messages

    # ---- the client

    def greet(self, hello: Hello) -> bytes:
        """Give the client's first message: its hello with a fresh nonce."""
        self._client = hello.encoded[:-NONCE_BYTES] + os.urandom(NONCE_BYTES)
        return self._client

    def take_challenge(self, message: bytes, content: Mapping[str, Any]) -> None:
        """Check the server's challenge.

        Raises
        ------
        ProtocolError
            It is no challenge, or its proof is wrong.
        """
        nonce = content.get("challenge")
        if type(nonce) is not bytes or len(nonce) != NONCE_BYTES:
            raise ProtocolError("the server's challenge is invalid")
        self._challenge = message
        self._prover.take(content, self._client, nonce)

    def answer(self) -> bytes:
        """Give the client's proof as a message.

        Raises
        ------
        UnavailableError
            It cannot be made now.
        """
        return self._prover.prove("client", self._client, self._challenge)

    def check_server(self, message: bytes, body: bytes) -> None:
        """Check the server's proof, in *body*, over its hello, which is a whole *message*.

        Raises
        ------
        ProtocolError
            The proof is wrong.
        UnavailableError
            It cannot be checked now.
        """
        self._prover.check("server", body, self._client, self._challenge, message)

    # ---- the server

    def challenge(self, message: bytes, client: Hello) -> bytes:
        """Take the client's first message, and give the challenge.

        Raises
        ------
        RefusedError
            The client has not this method, or no key of ours.
        ProtocolError
            Its hello has no nonce.
        """
        nonce = os.urandom(NONCE_BYTES)
        content = self._prover.challenge(client, message, nonce)
        if not has_nonce(message):
            raise ProtocolError("the client's hello has no nonce at its end")
        self._client = message
        self._challenge = _message({"challenge": nonce, **content})
        return self._challenge

    def check_client(self, body: bytes) -> None:
        """Check the client's proof, in *body*.

        Raises
        ------
        ProtocolError
            It is wrong.
        UnavailableError
            It cannot be checked now.
        """
        self._prover.check("client", body, self._client, self._challenge)

    def seal(self, hello: bytes) -> bytes:
        """Give the server's hello, which is a whole message, and the proof after it.

        Raises
        ------
        UnavailableError
            It cannot be made now.
        """
        return hello + self._prover.prove("server", self._client, self._challenge, hello)


def _transcript(words: bytes, messages: Sequence[bytes]) -> bytes:
    parts = [words]
    for message in messages:
        parts += (len(message).to_bytes(8, "little"), message)
    return b"".join(parts)


def _message(content: Mapping[str, Any]) -> bytes:
    body = msgpack.packb(content)
    return _preamble(len(body)) + body


def _preamble(nbytes: int) -> bytes:
    return PREAMBLE.pack(MAGIC, MAJOR_VERSION, MINOR_VERSION, 0, nbytes)


_PROOF = b"\x81\xa5proof\xc4\x20"  # a map of one entry, up to the proof, in msgpack
_PROOF_MESSAGE = _preamble(len(_PROOF) + _PROOF_BYTES) + _PROOF
_CREDENTIAL = b"\x81\xaacredential"  # the same, up to the credential
_FORM_OF_CREDENTIALS = re.compile(rb"MUNGE:[0-9A-Za-z+/=]+:")
