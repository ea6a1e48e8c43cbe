"""Encryption from the shared key: TLS 1.3 with a certificate that every holder of the key can make.

Theory of operation
-------------------
From each key a private key of Ed25519 is derived (HKDF, RFC 5869), and a certificate that is signed
with it and never ends. Ed25519 signatures are deterministic, so all processes make the same
certificate, and none has to be stored or sent before. A client trusts the certificates of its own
keys and nothing else: who answers with one of them has that key.

The client has no certificate. It proves that it has the key by the handshake of
`dask_fabric.wire.authentication`, inside TLS, where only a holder of the key can read it. Those
proofs differ from the ones in plain text, and from those inside TLS by certificates, so none can be
carried from one into another.

A process may accept several keys for a while. The client names the fingerprints of all of its keys
as the server's name (SNI), and the server answers with the certificate of the first that it has
too. Each connection has keys of its own (ECDHE): who learns the shared key later cannot decrypt
what he has recorded.

TLS with pre-shared keys would need no certificate, but Python has it from 3.13 on only, and there
in a form for TLS 1.2.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import ssl
from collections.abc import Iterator

from dask_fabric.errors import ConfigError
from dask_fabric.paths import openssl
from dask_fabric.wire.authentication import Keys

_PURPOSE = "certificate"
_NAME_END = ".dask-fabric"  # of the name that a client asks for
_BEGIN = datetime.datetime(2000, 1, 1)
_NEVER = datetime.datetime(9999, 12, 31, 23, 59, 59)  # RFC 5280, 4.1.2.5


@functools.lru_cache(maxsize=8)
def server_context(keys: Keys) -> ssl.SSLContext:
    """Give the TLS context of a server that has these keys.

    Raises
    ------
    ConfigError
        The package cryptography is missing.
    """
    contexts = {}
    for fingerprint in keys.fingerprints:
        context = contexts[fingerprint] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0  # no session is resumed
        with _as_file("".join(_pem_of(keys, fingerprint))) as path:
            context.load_cert_chain(path)

    def choose(sock: ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> int | None:
        asked = (name or "").split(".")
        for fingerprint, context in contexts.items():
            if fingerprint in asked:
                sock.context = context
                return None
        return ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    first = contexts[keys.fingerprints[0]]
    if len(contexts) == 1:
        return first
    openssl.refuse_other_names(first)
    first.sni_callback = choose  # type: ignore[assignment]  # sock is what the context wraps
    return first


@functools.lru_cache(maxsize=8)
def client_context(keys: Keys) -> ssl.SSLContext:
    """Give the TLS context of a client that has these keys; connect by `server_name`.

    Raises
    ------
    ConfigError
        The package cryptography is missing.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the certificate is the server's name
    certificates = (_pem_of(keys, fingerprint)[1] for fingerprint in keys.fingerprints)
    context.load_verify_locations(cadata="".join(certificates))
    return context


def server_name(keys: Keys) -> str:
    """Give the name by which a client asks a server for the certificate of one of its keys."""
    return ".".join(keys.fingerprints) + _NAME_END


def _pem_of(keys: Keys, fingerprint: str) -> tuple[str, str]:
    """Give the private key and the certificate that belong to one of the keys."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise ConfigError(
            "fabric.auth.encrypt is true, and needs the package cryptography: pip install "
            "cryptography"
        ) from error
    private = Ed25519PrivateKey.from_private_bytes(keys.derive(fingerprint, _PURPOSE))
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"dask-fabric {fingerprint}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(int(fingerprint, 16) | 1)  # not 0
        .not_valid_before(_BEGIN)
        .not_valid_after(_NEVER)
        .sign(private, algorithm=None)
    )
    pem = serialization.Encoding.PEM
    unencrypted = serialization.NoEncryption()
    secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, unencrypted)
    return secret.decode(), certificate.public_bytes(pem).decode()


@contextlib.contextmanager
def _as_file(text: str) -> Iterator[str]:
    """Give the path of a file in memory alone: `ssl` reads private keys from files only."""
    descriptor = os.memfd_create("dask-fabric key", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
