"""UCX, for RDMA networks and GPUs: configuration, description, negotiation, and reports."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from dask_fabric.keys import Key, Section, full_path, switch_or_auto
from dask_fabric.paths.library_provider import LibraryProvider
from dask_fabric.paths.provider import (
    CUDA,
    HOST,
    Advice,
    Candidate,
    Description,
    HostKey,
    Pair,
    Peer,
)
from dask_fabric.paths.ucx.candidates import VERBS
from dask_fabric.wire.text import is_name

if TYPE_CHECKING:
    from dask_fabric.paths.ucx.endpoint import UCXPath
    from dask_fabric.paths.ucx.local import LocalUCX
    from dask_fabric.paths.ucx.survey import Library, Ucx

# Prefixes of the names of UCX's transports.
SHARED_MEMORY = ("posix", "sysv", "xpmem")
CUDA_TRANSPORTS = ("cuda_ipc", "cuda_copy")
WITHIN_HOST = (*SHARED_MEMORY, "cuda_ipc")
# They carry no messages, or fail if either process dies.
SILENT = ("self", "cma", "knem", "cuda", "gdr_copy", "rocm", "ze_")
# What two processes must have in common to share memory, by key in a hello. UCX itself checks only
# the first.
SCOPES = {"ipc": "IPC namespaces", "pid": "pid namespaces", "user": "users"}
# Kinds of device memory, as UCX numbers them (``ucs_memory_type_t``).
MEMORY_TYPES = {CUDA: 1}
_SHM_BYTES = 1 << 30
_NET_DEVICES = "UCX_NET_DEVICES"
_ERROR = re.compile(r"\bUCX +ERROR +(.+)")  # UCX writes errors to the standard output


def _options(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise TypeError(value)
    return tuple(sorted(_option(name, setting) for name, setting in value.items()))


def _option(name: object, value: object) -> tuple[str, str]:
    """Write one setting as UCX reads it from the environment; Dask's keys may be lower-case."""
    if type(name) is not str or type(value) not in (str, int, float, bool):
        raise TypeError(name)
    name = name.upper().replace("-", "_")
    if not re.fullmatch(r"(?!UCX_)[A-Z][A-Z0-9_]*", name) or "\0" in str(value):
        raise ValueError(name)
    return name, ("n", "y")[value] if type(value) is bool else str(value)


class UCXProvider(LibraryProvider):
    """The path ``ucx``."""

    name = "ucx"
    title = "UCX"
    scheme = "fabric+ucx"
    memory = (HOST, CUDA)
    rank = 40
    environment: ClassVar[Mapping[str, str]] = {
        "UCX_LOG_FILE": "stderr",
        "UCX_WARN_UNUSED_ENV_VARS": "n",
    }
    section = Section(
        "The UCX library, for RDMA networks and GPUs.",
        {
            "enabled": switch_or_auto(
                "enabled",
                "true, false; auto: if the host has RDMA devices or a GPU",
                "Whether to look for [UCX](ucx.md) and use it. `auto`: only if this host has RDMA "
                "devices or a GPU.",
            ),
            "library": full_path(
                "library",
                "a libucp.so.0 or of its folder",
                "a libucp.so.0, or its folder; null: the best one found",
                "Full path of the `libucp.so.0` to use, or of its folder; no other is tried then. "
                "`null`: the best one [found](ucx.md#which-library-is-used).",
            ),
            "options": Key(
                "options",
                {},
                "mapping",
                _options,
                "a mapping of UCX's settings, named without UCX_, to text or numbers",
                {
                    "type": "object",
                    "additionalProperties": {"type": ["string", "number", "boolean"]},
                },
                "settings of UCX, such as TLS: ^tcp; UCX_* in the environment win",
                "Settings of UCX, by their names without `UCX_`, such as `{TLS: ^tcp}`. Variables "
                "in the environment (`UCX_TLS`) win.",
            ),
        },
    )

    # ---- the process

    def load(self) -> None:
        from dask_fabric.paths.ucx import endpoint, local  # noqa: F401

    def _local(self) -> ModuleType:
        from dask_fabric.paths.ucx import local

        return local

    def _found(self) -> Callable[..., tuple[LocalUCX | None, str]]:
        return self._local().local_ucx

    def _description_of(self, local: LocalUCX) -> Description:
        return Description(
            version=local.version,
            transports=local.transports,
            address=local.address,
            token=0,
            scope=local.scope,
        )

    def candidate(
        self, description: Mapping[str, Any], settings: Any, sock: socket.socket
    ) -> Candidate:
        # An unguessable token for each connection.
        return _Candidate(Description(description, token=1 + secrets.randbits(62)))

    def device_environment(
        self, ports: Sequence[str], settings: Any, environment: Mapping[str, str]
    ) -> Mapping[str, str]:
        chosen = _NET_DEVICES in environment or "NET_DEVICES" in dict(settings.options)
        return {} if chosen else {_NET_DEVICES: ",".join(ports)}

    def statistics(self) -> Mapping[str, Any] | None:
        from dask_fabric.paths.ucx import core, worker

        return core.statistics() if worker.is_running() else None

    # ---- descriptions in hellos

    def check(self, description: Mapping[str, Any]) -> bool:
        token, transports = description.get("token"), description.get("transports")
        scope = description.get("scope", {})
        return (
            is_name(description.get("version"))
            and isinstance(transports, (list, tuple))
            and all(map(is_name, transports))
            and isinstance(description.get("address"), bytes)
            and type(token) is int
            and token >= 0
            and isinstance(scope, dict)
            and all(map(is_name, scope.values()))
        )

    def objection(self, pair: Pair) -> str:
        client, server = pair.client, pair.server
        versions = client["version"], server["version"]
        if versions[0] != versions[1]:
            text = "client: UCX {}, server: UCX {}; both must have the same version"
            return text.format(*versions)
        common = set(client["transports"]) & set(server["transports"])
        if pair.memory == CUDA and not _any_of(CUDA_TRANSPORTS, common):
            return "UCX has neither cuda_ipc nor cuda_copy in common between the two"
        apart = _apart(client, server) if pair.same_host else ""
        if apart not in ("", SCOPES["ipc"]) and _any_of(SHARED_MEMORY, common):
            return (
                f"UCX's shared memory fails between different {apart}, and UCX tries nothing else "
                "unless it is left out (UCX_TLS=^sm)"
            )
        if apart or not pair.same_host:
            common = {name for name in common if not name.startswith(WITHIN_HOST)}
        if pair.insists:
            works, rest = any(not name.startswith(SILENT) for name in common), "nor TCP"
        else:
            better = (*VERBS, *(WITHIN_HOST if pair.memory == CUDA else SHARED_MEMORY))
            works, rest = _any_of(better, common), "and the stream is as good as its TCP"
        return "" if works else f"{_lack(pair.same_host, apart)} in common between the two, {rest}"

    def conceal(self, description: Mapping[str, Any], key: HostKey) -> Mapping[str, Any]:
        if "scope" not in description:
            return description
        scope = {name: key.disguise(name, text) for name, text in description["scope"].items()}
        return {**description, "scope": scope}

    def for_strangers(self, description: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: value for name, value in description.items() if name != "scope"}

    # ---- the doctor

    def inspect(self, settings: Any) -> Ucx:
        from dask_fabric.paths.ucx.survey import inspect_ucx

        return inspect_ucx(settings)

    def rows(self, details: Ucx) -> Iterator[Sequence[str]]:
        yield "looked for" if details.wanted else "not looked for", details.why_wanted
        if details.chosen is None and details.reason != details.why_wanted:
            yield "none", details.reason
        elif details.chosen is not None:
            yield "chosen", f"{_named(details.chosen)}: {details.reason}"
            yield "", f"transports: {' '.join(details.chosen.transports) or 'none'}"
        for one in details.others:
            yield "not chosen", f"{_named(one)}: {one.refusal}"

    def remedy(self, facts: Any) -> str:
        if facts.configuration.value("ucx.enabled") is False:
            return "set fabric.ucx.enabled: auto"
        if self._chosen(facts) is not None:
            return (
                "check that UCX_TLS, UCX_NET_DEVICES and the like in the environment, and "
                "fabric.ucx.options, allow it shared memory or a network"
            )
        if facts.configuration.value("ucx.library"):
            return "name a libucp.so.0 that works in fabric.ucx.library, or leave that out"
        if facts.rdma:
            return "load your site's UCX (such as: module load ucx), which supports your devices"
        install = "pip install 'dask-fabric[ucx]'"
        if facts.gpus or facts.configuration.value("ucx.enabled") is True:
            return install
        return f"not needed without RDMA devices and GPUs; else {install}"

    def advice(self, facts: Any) -> Iterator[Advice]:
        chosen = self._chosen(facts)
        if facts.configuration.value("ucx.enabled") is True and not chosen:
            yield Advice(
                "UCX",
                "fabric.ucx.enabled is true, but no UCX was found that works here",
                self.remedy(facts),
            )
        active = any(device.active for device in facts.rdma)
        if active and chosen and not chosen.has_rdma:
            yield Advice(
                "UCX",
                f"{chosen.path} is built without verbs and cannot use {facts.rdma[0].name}",
                "load your site's UCX (such as: module load ucx) before Python starts",
            )
        if any(gpu.usable for gpu in facts.gpus) and chosen and not chosen.has_gpu:
            yield Advice(
                "UCX",
                f"{chosen.path} is built without support for GPUs",
                "use a UCX that is built with CUDA or ROCm, such as libucx-cu12",
            )
        shm_bytes = facts.limits.shm_bytes
        if facts.path(self.name).works and isinstance(shm_bytes, int) and shm_bytes < _SHM_BYTES:
            yield Advice(
                "/dev/shm",
                f"it has {shm_bytes >> 20} MiB, and UCX shares memory through it",
                "docker run --shm-size=4g; Kubernetes: an emptyDir of medium Memory",
            )

    def reach(self, facts: Any) -> str:
        chosen = self._chosen(facts)
        usable = any(device.active and device.may_use_verbs for device in facts.rdma)
        return "RDMA" if usable and chosen is not None and chosen.has_rdma else ""

    def complaint(self, output: str) -> str:
        found = _ERROR.search(output)
        return found[1] if found else ""

    def _chosen(self, facts: Any) -> Library | None:
        details = facts.details.get(self.name)
        return details and details.chosen


class _Candidate(Candidate):
    """The path during the negotiation of one connection; tokens name its ends."""

    def open(self, peer: Peer, memory: Sequence[str]) -> UCXPath:
        from dask_fabric.paths.ucx.endpoint import UCXPath

        return UCXPath(
            self.description["token"],
            peer.description["token"],
            peer.description["address"],
            peer.kernel_pid,
            HOST in memory,
            MEMORY_TYPES[CUDA] if CUDA in memory else None,
        )


def _apart(client: Mapping[str, Any], server: Mapping[str, Any]) -> str:
    """Name the first scope in which two processes of a host differ, or "".

    A scope that one side does not announce counts as equal.
    """
    scopes = client.get("scope", {}), server.get("scope", {})
    for key, names in SCOPES.items():
        announced = {scope[key] for scope in scopes if key in scope}
        if len(announced) > 1:
            return names
    return ""


def _lack(within_host: bool, apart: str) -> str:
    if apart:
        return f"UCX shares no memory between different {apart}, and has no RDMA"
    return f"UCX has {'neither shared memory nor' if within_host else 'no'} RDMA"


def _any_of(prefixes: tuple[str, ...], names: Iterable[str]) -> bool:
    return any(name.startswith(prefixes) for name in names)


def _named(one: Library) -> str:
    return f"{one.version or 'unknown version'} at {one.path} ({one.source})"


PROVIDER = UCXProvider()
