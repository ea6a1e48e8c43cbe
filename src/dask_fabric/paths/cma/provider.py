"""Cross memory attach: the receiver reads large frames directly from the sender's memory.

A probe finds out whether that is permitted: the description in the hello contains a random nonce
and its address in the sender's memory. The receiver reads the nonce there and compares, so that it
never reads frames from a process that is not the peer.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_fabric.keys import Section, size, switch
from dask_fabric.paths.provider import Advice, Candidate, Description, HostKey, Peer, Provider

if TYPE_CHECKING:
    from dask_fabric.paths.cma.endpoint import CMAPath
    from dask_fabric.paths.cma.process import Process, Secret

_PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
_OFFER_BYTES_LEAST = 64 << 10  # smaller frames may not be offered, see docs/wire-protocol.md
_ADDRESS_BYTES = 8
_KEY_OFFSET = 4  # of the address in the key of a host


class CMAProvider(Provider):
    """The path ``cma``."""

    name = "cma"
    title = "CMA"
    rank = 20
    within_host = True
    needs_direct_connection = True
    section = Section(
        "Within a host the receiver reads frames from the sender's memory (process_vm_readv).",
        {
            "enabled": switch(
                "enabled",
                True,
                "",
                "Within a host, `fabric://` without TLS lets the receiver read large frames from "
                "the sender's memory. `false`: never with this process.",
            ),
            "threshold": size(
                "threshold_bytes",
                "128 KiB",
                "frames from this size on; smaller ones stay on the stream",
                "Frames from this size on use this path, smaller ones the stream. At least 64 KiB.",
                least=_OFFER_BYTES_LEAST,
            ),
            "allow-ptrace": switch(
                "allow_ptrace",
                True,
                "let peers read this process where kernel.yama.ptrace_scope is 1",
                "Where `kernel.yama.ptrace_scope` is 1: allow all processes of the same user to "
                "read (and trace) this one, as its peers must.",
            ),
        },
        "within a host, the receiver reads frames from the sender's memory",
    )

    def load(self) -> None:
        from dask_fabric.paths.cma import endpoint, process  # noqa: F401

    def configure(self, settings: Any) -> None:
        if settings.enabled and settings.allow_ptrace:
            allow_ptrace()

    def unwanted(self, settings: Any, insists: bool) -> str:
        return "" if settings.enabled else "fabric.cma.enabled is false in its configuration"

    def describe(self, settings: Any, insists: bool) -> Description | str:
        secret, description = _shared(os.getpid())
        secret.touch()
        return description

    def candidate(
        self, description: Mapping[str, Any], settings: Any, sock: socket.socket
    ) -> Candidate:
        return _Candidate(description, settings.threshold_bytes, sock)

    def check(self, description: Mapping[str, Any]) -> bool:
        address, nonce = description.get("address"), description.get("nonce")
        return type(address) is int and address >= 0 and isinstance(nonce, bytes)

    def conceal(self, description: Mapping[str, Any], key: HostKey) -> Mapping[str, Any]:
        address = description["address"].to_bytes(_ADDRESS_BYTES, "little")
        address = key.exchange(_KEY_OFFSET, address)
        nonce = key.exchange(_KEY_OFFSET + _ADDRESS_BYTES, description["nonce"])
        return {**description, "address": int.from_bytes(address, "little"), "nonce": nonce}

    reveal = conceal

    def remedy(self, facts: Any) -> str:
        limits = facts.limits
        if facts.configuration.value("cma.enabled") is False:
            return "set fabric.cma.enabled: true"
        if (limits.ptrace_scope or 0) > 1 and not limits.may_trace_all:
            return "sysctl -w kernel.yama.ptrace_scope=1 (or 0), or CAP_SYS_PTRACE"
        if limits.seccomp:
            return (
                "the container's seccomp filter may forbid process_vm_readv: docker run --cap-add "
                "SYS_PTRACE; Kubernetes: securityContext.capabilities.add: [SYS_PTRACE]"
            )
        return ""

    def advice(self, facts: Any) -> Iterator[Advice]:
        if not facts.path("cma").works:
            return
        if facts.identity.has_own("pid"):
            yield Advice(
                "PID namespace",  # not "cma": advice about a path that works is not shown
                "cma works within this one only, so not between containers",
                "docker run --pid=host; Kubernetes: shareProcessNamespace in one pod, or hostPID",
            )
        if facts.identity.has_own("user"):
            yield Advice(
                "user namespace",
                "cma works within this one only, so not between containers without root",
                "start all workers of a host in one container (dask worker --nworkers)",
            )


class _Candidate(Candidate):
    """The path during the negotiation of one connection.

    Over TCP it has a secret of its own, which lasts as long as the connection. Over a Unix socket
    the kernel names the peer's process, and shows the end of the stream at once: all connections
    share one secret.
    """

    def __init__(
        self, description: Mapping[str, Any], threshold_bytes: int, sock: socket.socket
    ) -> None:
        from dask_fabric.paths.cma.process import Secret

        super().__init__(description)
        self._threshold_bytes = threshold_bytes
        self._process: Process | None = None
        self._secret: Secret | None = None
        if sock.family != socket.AF_UNIX:
            self._secret = Secret()
            self.description = _description(self._secret)

    def probe(self, peer: Peer) -> str:
        from dask_fabric.paths.cma.process import attach

        theirs = peer.description
        self._process, reason = attach(peer.pid, theirs["address"], theirs["nonce"])
        return reason

    def open(self, peer: Peer, memory: Sequence[str]) -> CMAPath:
        from dask_fabric.paths.cma.endpoint import CMAPath

        assert self._process is not None  # or `probe` would have given a reason
        if self._secret is None:
            return CMAPath(self._process, self._threshold_bytes)
        theirs = peer.description
        return CMAPath(
            self._process,
            self._threshold_bytes,
            self._secret,
            theirs["address"],
            theirs["nonce"],
        )


@functools.lru_cache(maxsize=1)
def _shared(pid: int) -> tuple[Secret, Description]:
    """Give the secret for Unix sockets, where the kernel names the peer's process."""
    from dask_fabric.paths.cma.process import Secret

    secret = Secret()
    return secret, _description(secret)


def _description(secret: Secret) -> Description:
    return Description(address=secret.address, nonce=secret.nonce)


def allow_ptrace(path: Path = _PTRACE_SCOPE) -> None:
    """Permit processes of the same user to read this one, if Yama restricts that."""
    from dask_fabric.paths.cma.process import allow_peers

    try:
        restricted = path.read_text().strip() == "1"
    except OSError:
        return  # a kernel without Yama restricts nothing
    if restricted:
        allow_peers()


PROVIDER = CMAProvider()
