"""Proofs that both sides of a connection have the same key, without I/O.

Theory of operation
-------------------
A server that has a key believes nothing of a client, and does nothing for it, before the client has
proved that it has the key too; and the client believes no hello that is not proved. There are four
messages, each with the preamble of a hello:

========  ============================================================================
from      message
========  ============================================================================
client    its hello, with ``authentication: [key]``, the fingerprints of its keys, and
          a nonce at the end
server    the challenge: the fingerprint of the key that both have, a nonce, and a
          proof over the client's hello and this nonce
client    a proof over the client's hello and the challenge
server    its hello, and a proof over all messages before it and this hello
========  ============================================================================

A proof is an HMAC-SHA-256 over the name of its role and over whole messages, so it is worth nothing
in another connection (nonces), in the other direction or place (roles), or with a byte changed.
The specification is ``docs/wire-protocol.md``, with test vectors.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack

from dask_fabric.errors import ProtocolError, RefusedError
from dask_fabric.wire.foreign import MAGIC
from dask_fabric.wire.hello import (
    KEY,
    MAJOR_VERSION,
    MINOR_VERSION,
    NONCE_BYTES,
    PREAMBLE,
    Hello,
    has_nonce,
)

KEY_BYTES = 32
KEY_COUNT_LIMIT = 8  # that a process accepts: the current one, and older ones for a while
_PROOF_BYTES = 32
_FINGERPRINT_BYTES = 8
# What a connection is inside of: nothing, TLS by certificates, TLS by the key.
PLAIN, TLS, KEY_TLS = _INSIDES = "", "tls ", "key tls "
_ROLES = {
    f"{inside}{role}": f"dask-fabric key 1 {inside}{role}".encode()
    for role in ("challenge", "client", "server")
    for inside in _INSIDES
}
_ADVICE = "see `dask fabric key --help`"


class Keys:
    """The keys of a process, the current one first.

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

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._secrets = {_fingerprint(secret): secret for secret in secrets}
        self.fingerprints = tuple(self._secrets)

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

    def prove(self, fingerprint: str, role: str, *messages: bytes) -> bytes:
        """Give the proof of a role over whole messages.

        Parameters
        ----------
        fingerprint : str
            Of one of these keys.
        role : str
            ``challenge``, ``client`` or ``server``; before it `PLAIN`, `TLS` or `KEY_TLS`.
        """
        parts = [_ROLES[role]]
        for message in messages:
            parts += (len(message).to_bytes(8, "little"), message)
        return hmac.digest(self._secrets[fingerprint], b"".join(parts), "sha256")

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


class Exchange:
    """One side's proofs on one connection: made and checked in the order of the messages.

    Parameters
    ----------
    keys : Keys
    inside : str
        `PLAIN`, `TLS` or `KEY_TLS`. A proof is worth nothing inside of something else. Else
        somebody could carry the proof of a client that does not encrypt, or that believes a
        certificate of his, to a server that encrypts by the key.
    """

    def __init__(self, keys: Keys, inside: str = PLAIN) -> None:
        self._keys = keys
        self._inside = inside
        self._client = self._challenge = b""  # whole messages
        self._fingerprint = ""

    # ---- the client

    def greet(self, hello: Hello) -> bytes:
        """Give the client's first message: its hello with a fresh nonce."""
        self._client = hello.encoded[:-NONCE_BYTES] + os.urandom(NONCE_BYTES)
        return self._client

    def take_challenge(self, message: bytes, content: Mapping[str, Any]) -> bytes:
        """Check the server's challenge, and give the client's proof as a message.

        Raises
        ------
        ProtocolError
            It is no challenge, or its proof is wrong.
        """
        nonce, fingerprint = content.get("challenge"), content.get("key")
        if type(nonce) is not bytes or len(nonce) != NONCE_BYTES or not self._keys.has(fingerprint):
            raise ProtocolError("the server's challenge is invalid")
        self._challenge, self._fingerprint = message, str(fingerprint)
        self._check("challenge", content.get("proof"), self._client, nonce)
        return self._proof("client", self._client, message)

    def check_server(self, message: bytes, body: bytes) -> None:
        """Check the server's proof, in *body*, over its hello, which is a whole *message*.

        Raises
        ------
        ProtocolError
            The proof is wrong.
        """
        self._check("server", _proof_in(body), self._client, self._challenge, message)

    # ---- the server

    def challenge(self, message: bytes, client: Hello) -> bytes:
        """Take the client's first message, and give the challenge.

        Raises
        ------
        RefusedError
            The client has no key, or another.
        ProtocolError
            Its hello has no nonce.
        """
        self._fingerprint = self._keys.common(client)
        if not has_nonce(message):
            raise ProtocolError("the client's hello has no nonce at its end")
        self._client = message
        nonce = os.urandom(NONCE_BYTES)
        self._challenge = _message(
            {
                "challenge": nonce,
                "key": self._fingerprint,
                "proof": self._prove("challenge", message, nonce),
            }
        )
        return self._challenge

    def check_client(self, body: bytes) -> None:
        """Check the client's proof, in *body*.

        Raises
        ------
        ProtocolError
            It is wrong.
        """
        self._check("client", _proof_in(body), self._client, self._challenge)

    def seal(self, hello: bytes) -> bytes:
        """Give the server's hello, which is a whole message, and the proof after it."""
        return hello + self._proof("server", self._client, self._challenge, hello)

    # ---- both

    def _proof(self, role: str, *messages: bytes) -> bytes:
        return _PROOF_MESSAGE + self._prove(role, *messages)

    def _prove(self, role: str, *messages: bytes) -> bytes:
        return self._keys.prove(self._fingerprint, self._inside + role, *messages)

    def _check(self, role: str, proof: object, *messages: bytes) -> None:
        wanted = self._prove(role, *messages)
        if type(proof) is not bytes or not hmac.compare_digest(proof, wanted):
            side = "client" if role == "client" else "server"
            raise ProtocolError(
                f"the {side} has not proved that it has the key {self._fingerprint}: its key is "
                "another, or somebody between the two changes what they send"
            )


def _message(content: Mapping[str, Any]) -> bytes:
    body = msgpack.packb(content)
    return _preamble(len(body)) + body


def _preamble(nbytes: int) -> bytes:
    return PREAMBLE.pack(MAGIC, MAJOR_VERSION, MINOR_VERSION, 0, nbytes)


_PROOF = b"\x81\xa5proof\xc4\x20"  # a map of one entry, up to the proof, in msgpack
_PROOF_MESSAGE = _preamble(len(_PROOF) + _PROOF_BYTES) + _PROOF


def is_proof(body: bytes) -> bool:
    """Whether this is a proof, and nothing else such as a refusal."""
    return len(body) == len(_PROOF) + _PROOF_BYTES and body.startswith(_PROOF)


def _proof_in(body: bytes) -> bytes:
    if not is_proof(body):
        raise ProtocolError("a proof was expected, and the peer sent something else")
    return body[len(_PROOF) :]
