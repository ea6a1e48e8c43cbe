"""libfabric (OFI), for networks where UCX has nothing but TCP: Slingshot, EFA, Omni-Path."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dask_fabric.keys import Key, Section, full_path, size, switch_or_auto
from dask_fabric.paths.library_provider import LibraryProvider
from dask_fabric.paths.ofi.kinds import BY_NAME
from dask_fabric.paths.provider import Advice, Candidate, Description, Pair, Peer
from dask_fabric.wire.text import is_name

if TYPE_CHECKING:
    from dask_fabric.paths.ofi.endpoint import OFIPath
    from dask_fabric.paths.ofi.local import LocalOFI
    from dask_fabric.paths.ofi.survey import Survey

_OFFER_BYTES_LEAST = 64 << 10  # smaller frames may not be offered, see docs/wire-protocol.md
_NONCE_BYTES = 16
_NAME_BYTES_LIMIT = 256
_NUMBERS = (
    "protocol",
    "protocol_version",
    "addr_format",
    "vni",
    "address",
    "key",
    "connection_address",
    "connection_key",
)


def _provider(value: object) -> str | None:
    if value is not None and value not in BY_NAME:
        raise ValueError(value)
    return None if value is None else str(value)


def _domain(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value and is_name(value)):
        return value
    raise ValueError(value)


def _options(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise TypeError(value)
    return tuple(sorted(_option(name, setting) for name, setting in value.items()))


def _option(name: object, value: object) -> tuple[str, str]:
    """Write one setting as libfabric reads it from the environment; keys may be lower-case."""
    if type(name) is not str or type(value) not in (str, int, float, bool):
        raise TypeError(name)
    name = name.upper().replace("-", "_")
    if not re.fullmatch(r"(?!FI_)[A-Z][A-Z0-9_]*", name) or "\0" in str(value):
        raise ValueError(name)
    return f"FI_{name}", ("0", "1")[value] if type(value) is bool else str(value)


class OFIProvider(LibraryProvider):
    """The path ``ofi``."""

    name = "ofi"
    title = "libfabric"
    scheme = "fabric+ofi"
    rank = 45  # after ucx: where both have RDMA, that is the better known
    section = Section(
        "The libfabric library, for Slingshot, EFA and Omni-Path.",
        {
            "enabled": switch_or_auto(
                "enabled",
                "true, false; auto: if the host has Slingshot, EFA or Omni-Path",
                "Whether to look for [libfabric](ofi.md) and use it. `auto`: only if this host has "
                "devices of Slingshot, EFA or Omni-Path, or if `fabric.ofi.provider` is set. "
                "`true`: also for InfiniBand, which is left to UCX otherwise.",
            ),
            "library": full_path(
                "library",
                "a libfabric.so.1 or of its folder",
                "a libfabric.so.1, or its folder; null: the first with the provider",
                "Full path of the `libfabric.so.1` to use, or of its folder; no other is tried "
                "then. `null`: the first that is [found](ofi.md#which-library-is-used) and has the "
                "provider.",
            ),
            "provider": Key(
                "provider",
                None,
                "name",
                _provider,
                f"null, or one of: {', '.join(BY_NAME)}",
                {"enum": [None, *BY_NAME]},
                "cxi, efa, opx, psm3, verbs;ofi_rxm, tcp, shm...; null: for the host's devices",
                "The [provider](ofi.md#providers) of libfabric to use. `null`: the first of those "
                "for this host's devices, never one in software, such as `tcp`.",
            ),
            "domain": Key(
                "domain",
                None,
                "name",
                _domain,
                "null, or the name of a domain of libfabric",
                {"type": ["string", "null"]},
                "a network card, such as cxi0; null: one near the process's CPUs",
                "The network card to use, by the name that `fi_info` calls its domain, such as "
                "`cxi0`. `null`: one [near the CPUs of the process](ofi.md#which-card-is-used).",
            ),
            "options": Key(
                "options",
                {},
                "mapping",
                _options,
                "a mapping of libfabric's settings, named without FI_, to text or numbers",
                {
                    "type": "object",
                    "additionalProperties": {"type": ["string", "number", "boolean"]},
                },
                "settings of libfabric, such as TCP_IFACE: eth0; FI_* in the environment win",
                "Settings of libfabric, by their names without `FI_`, such as `{TCP_IFACE: eth0}`. "
                "Variables in the environment (`FI_TCP_IFACE`) win.",
            ),
            "threshold": size(
                "threshold_bytes",
                "128 KiB",
                "frames from this size on; smaller ones stay on the stream",
                "Frames from this size on use this path, smaller ones the stream. At least 64 KiB.",
                least=_OFFER_BYTES_LEAST,
            ),
        },
    )

    # ---- the process

    def load(self) -> None:
        from dask_fabric.paths.ofi import endpoint, local  # noqa: F401

    def _local(self) -> ModuleType:
        from dask_fabric.paths.ofi import local

        return local

    def _found(self) -> Callable[..., tuple[LocalOFI | None, str]]:
        return self._local().local_ofi

    def _description_of(self, local: LocalOFI) -> Description:
        return Description(
            local.facts, version=local.version, provider=local.provider, vni=local.vni
        )

    def candidate(
        self, description: Mapping[str, Any], settings: Any, sock: socket.socket
    ) -> Candidate:
        return _Candidate(description, settings.threshold_bytes)

    def statistics(self) -> Mapping[str, Any] | None:
        from dask_fabric.paths.ofi import worker

        return worker.statistics() if worker.is_running() else None

    # ---- descriptions in hellos

    def check(self, description: Mapping[str, Any]) -> bool:
        name = description.get("name")
        nonces = description.get("nonce"), description.get("connection_nonce")
        numbers = [description.get(key) for key in _NUMBERS]
        return (
            is_name(description.get("version"))
            and is_name(description.get("provider"))
            and all(type(one) is int and 0 <= one < 1 << 64 for one in numbers)
            and isinstance(name, bytes)
            and 0 < len(name) <= _NAME_BYTES_LIMIT
            and all(isinstance(nonce, bytes) and len(nonce) == _NONCE_BYTES for nonce in nonces)
        )

    def objection(self, pair: Pair) -> str:
        client, server = pair.client, pair.server
        if client["provider"] != server["provider"]:
            text = "client: {}, server: {} of libfabric; both must use the same provider"
            return text.format(client["provider"], server["provider"])
        kind = BY_NAME.get(client["provider"])
        if kind is None:
            return f"libfabric's provider {client['provider']!r} is not used by this release"
        keys = ("protocol", "protocol_version", "addr_format")
        if any(client[key] != server[key] for key in keys) or (
            kind.same_version and client["version"] != server["version"]
        ):
            return (
                f"client: {kind.name} of libfabric {client['version']}, server: of "
                f"{server['version']}; these do not understand each other"
            )
        if client["vni"] != server["vni"]:
            return (
                f"client: VNI {client['vni']}, server: VNI {server['vni']} of Slingshot; both must "
                "be in the same one (start them in one srun, or with srun --network=job_vni)"
            )
        if kind.within_host and not pair.same_host:
            return f"{kind.name} of libfabric joins processes of one host only"
        return ""

    # ---- the doctor

    def inspect(self, settings: Any) -> Survey:
        from dask_fabric.paths.ofi.survey import inspect_ofi

        return inspect_ofi(settings)

    def rows(self, details: Survey) -> Iterator[Sequence[str]]:
        yield "looked for" if details.wanted else "not looked for", details.why_wanted
        yield from details.libraries

    def remedy(self, facts: Any) -> str:
        if facts.configuration.value("ofi.enabled") is False:
            return "set fabric.ofi.enabled: auto"
        details = facts.details.get(self.name)
        if details and details.provider:
            return (
                f"check that FI_* in the environment, and fabric.ofi.options, allow "
                f"{details.provider} its network"
            )
        if facts.configuration.value("ofi.library"):
            return "name a libfabric.so.1 that works in fabric.ofi.library, or leave that out"
        if details and details.wanted:
            return "load your site's libfabric, whose provider supports your devices"
        return "not needed without Slingshot, EFA and Omni-Path"

    def advice(self, facts: Any) -> Iterator[Advice]:
        details = facts.details.get(self.name)
        if details and details.wanted and not details.provider:
            yield Advice("libfabric", details.reason, self.remedy(facts))

    def reach(self, facts: Any) -> str:
        details = facts.details.get(self.name)
        return "RDMA" if details and details.provider and details.has_network else ""


class _Candidate(Candidate):
    """The path during the negotiation of one connection, which has a nonce of its own.

    Where no memory can be registered for that, it has the process's, which is never revoked.
    """

    def __init__(self, description: Mapping[str, Any], threshold_bytes: int) -> None:
        from dask_fabric.paths.ofi.nonces import Nonce

        self._threshold_bytes = threshold_bytes
        self._nonce: Nonce | None = None
        with contextlib.suppress(OSError):
            self._nonce = Nonce()
            address, key = self._nonce.place
            description = Description(
                description,
                connection_nonce=self._nonce.value,
                connection_address=address,
                connection_key=key,
            )
        super().__init__(description)

    def open(self, peer: Peer, memory: Sequence[str]) -> OFIPath:
        from dask_fabric.paths.ofi.endpoint import OFIPath

        return OFIPath(peer.description, self._threshold_bytes, self._nonce)


PROVIDER = OFIProvider()
