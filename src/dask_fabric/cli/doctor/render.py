"""The report as plain text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

from dask.utils import format_bytes

from dask_fabric import providers
from dask_fabric.cli.configuration import Configuration
from dask_fabric.cli.doctor.advice import Advice, SchemeUse
from dask_fabric.cli.doctor.host import Limit
from dask_fabric.cli.doctor.network import Interface
from dask_fabric.cli.doctor.pair import PATHS, STREAM
from dask_fabric.cli.doctor.remote import FRAME_BYTES, Pair
from dask_fabric.cli.doctor.report import Facts
from dask_fabric.gpu.rdma import RdmaDevice
from dask_fabric.gpu.survey import Gpu
from dask_fabric.memory.device import HOST
from dask_fabric.paths.provider import Provider
from dask_fabric.text_table import table, wrapped
from dask_fabric.wire.hello import MUNGE

_UNKNOWN = "unknown"
_WIDTHS = (80, 100)
_GAP = "  "


def text_width() -> int:
    """Give the width of the terminal, within what is readable."""
    low, high = _WIDTHS
    return max(low, min(high, shutil.get_terminal_size((high, 24)).columns))


def render(facts: Facts, uses: dict[str, SchemeUse], advice: Sequence[Advice], width: int) -> str:
    """Write the report of this host, in lines of at most *width* characters where it can be."""
    about_paths = {one.about: one for one in advice if one.about in PATHS}
    others = [one for one in advice if one.about not in PATHS]
    sections = (
        ("", _head(facts)),
        ("Paths, tried between two processes of this host", _paths(facts, about_paths)),
        ("Schemes", _schemes(uses)),
        ("Network interfaces", _interfaces(facts.interfaces)),
        ("RDMA devices", _rdma(facts.rdma)),
        ("GPUs", _gpus(facts.gpus, facts.gpu_modules)),
        *((one.title, _details(facts, one)) for one in providers.found()),
        ("Limits", _limits(facts)),
        ("Namespaces", _namespaces(facts)),
        ("Configuration", _configuration(facts)),
        ("Could not be read", list(facts.failures.items())),
    )
    lines: list[str] = []
    for title, rows in sections:
        shown = table(rows, start=_GAP, width=width)
        if shown:
            lines += [title] * bool(title) + shown + [""]
    return "\n".join(lines + _advice(others, width))


def render_pair(pair: Pair, width: int) -> str:
    """Write what was learned of this process and a server."""
    return "\n".join([pair.address, *table(_pair(pair), start=_GAP, width=width)])


def _head(facts: Facts) -> list[Sequence[str]]:
    host = facts.host
    packages = ", ".join(f"{name} {found or 'missing'}" for name, found in host.packages.items())
    memory = format_bytes(host.memory_bytes) if host.memory_bytes else _UNKNOWN
    return [
        ("host", f"{_said(host.name)}, {_said(host.kernel)} {host.architecture or ''}".strip()),
        ("size", f"{_said(host.cpu_count)} CPUs, {memory} of memory"),
        ("software", packages or _UNKNOWN),
    ]


def _paths(facts: Facts, advice: dict[str, Advice]) -> Iterator[Sequence[str]]:
    without_copy = [one.name for one in providers.found() if not one.copies]
    told: dict[tuple[str, str], str] = {}  # by reason and remedy: the first path with them
    for path in PATHS:
        result = facts.path(path)
        if result.works:
            fast = f"{speed(result.bandwidth_bytes_per_second):>10}"
            measured = "nothing is copied" if path in without_copy else fast
            yield path, "works", f"{measured}, round trip {duration(result.round_trip_seconds)}"
        else:
            remedy = advice[path].remedy if path in advice else ""
            first = told.setdefault((result.reason, remedy), path)
            if first != path:
                yield path, "not in use", f"for the same reason as {first}"
                continue
            yield path, "not in use", result.reason
            if remedy:
                yield "", "", f"-> {remedy}"


def _schemes(uses: dict[str, SchemeUse]) -> list[Sequence[str]]:
    rows = [(f"{name}://", use.within_host, use.between_hosts) for name, use in uses.items()]
    return [("", "within this host", "to other hosts"), *rows]


def _interfaces(interfaces: Sequence[Interface]) -> Iterator[Sequence[str]]:
    for one in interfaces:
        if one.up:
            mbit = one.speed_mbit
            yield (
                one.name,
                one.kind,
                f"{mbit / 1000:g} Gb/s" if mbit else "speed unknown",
                ", ".join(one.addresses) + " (advertised)" * one.advertised,
            )
        else:
            yield one.name, one.kind, "down", ""


def _rdma(devices: Sequence[RdmaDevice]) -> Iterator[Sequence[str]]:
    if not devices:
        yield ("none",)
    for device in devices:
        about = [f"firmware {device.firmware}"] if device.firmware else []
        about += [f"PCIe {device.place.link}"] if device.place and device.place.link else []
        about += [f"interface {', '.join(device.interfaces)}"] if device.interfaces else []
        about += [] if device.may_use_verbs else ["may not be opened"]
        for port in device.ports:
            yield (
                f"{device.name} port {port.number}",
                _said(port.link_layer),
                _said(port.state),
                _said(port.rate),
                "; ".join(about),
            )


def _gpus(gpus: Sequence[Gpu], modules: Sequence[str]) -> Iterator[Sequence[str]]:
    if not gpus:
        yield ("none",)
    for gpu in gpus:
        about = [format_bytes(gpu.memory_bytes)] if gpu.memory_bytes else []
        about += [f"driver {gpu.driver}"] if gpu.driver else []
        about += [] if gpu.usable else ["not usable here"]
        if gpu.nearest:
            about.append(f"nearest: {', '.join(gpu.nearest)} ({gpu.nearest_by})")
        yield gpu.place.address if gpu.place else _UNKNOWN, gpu.name, "; ".join(about)
    if gpus:
        yield "kernel modules for network cards", "", ", ".join(modules) or "none"


def _details(facts: Facts, provider: Provider) -> Iterator[Sequence[str]]:
    if provider.name in facts.details:
        yield from provider.rows(facts.details[provider.name])


def _limits(facts: Facts) -> list[Sequence[str]]:
    limits = facts.limits
    meanings = ("not restricted", "children and whom a process allows", "root only", "nobody")
    scopes = dict(enumerate(meanings))
    scope = limits.ptrace_scope
    said = f"{scope}: {scopes[scope]}" if scope in scopes else _said(scope)
    sizes = f"{size(limits.shm_bytes)}, {size(limits.shm_free_bytes)} free"
    return [
        ("locked memory (memlock)", size(limits.memlock_bytes)),
        ("open files (nofile)", _said(limits.open_file_count)),
        ("/dev/shm", sizes if limits.shm_bytes else _UNKNOWN),
        ("transparent huge pages", _said(limits.transparent_huge_pages)),
        ("huge pages of memory files", _said(limits.shmem_huge_pages)),
        ("reserved huge pages", _said(limits.reserved_huge_page_count)),
        ("reading other processes (yama ptrace_scope)", said),
        ("reading any process (CAP_SYS_PTRACE)", _said(limits.may_trace_all)),
        ("filter of system calls (seccomp)", _said(limits.seccomp)),
        ("net.core.somaxconn", _said(limits.somaxconn_count)),
        ("net.core.wmem_max, rmem_max", _pair_of(limits.wmem_max_bytes, limits.rmem_max_bytes)),
        (
            "net.ipv4.tcp_wmem, tcp_rmem (maximum)",
            _pair_of(limits.tcp_wmem_max_bytes, limits.tcp_rmem_max_bytes),
        ),
    ]


def _namespaces(facts: Facts) -> list[Sequence[str]]:
    identity = facts.identity
    numbers = (f"{name} {_said(number)}" for name, number in identity.namespaces.items())
    own = " (process ids of its own)" * identity.has_own("pid")
    return [
        ("boot", _said(identity.boot_id)),
        ("namespaces", ", ".join(numbers) + own),
        ("container", identity.container or "none seen"),
    ]


def _configuration(facts: Facts) -> list[Sequence[str]]:
    found = facts.configuration
    rows = [(name, repr(value)) for name, value in found.changed.items()]
    return [
        *(rows or [("fabric", "all defaults")]),
        ("distributed.comm.default-scheme", _said(found.default_scheme)),
        ("distributed.comm.require-encryption", _said(found.require_encryption)),
        ("certificates in distributed.comm.tls", _said(found.certificates)),
        _authentication(found),
    ]


def _authentication(found: Configuration) -> tuple[str, str]:
    if found.value("auth.method") != MUNGE:
        return "key that every process must have", ", ".join(found.keys) or "none"
    said = f"munged answers: this is a process of user {found.user}"
    return "MUNGE, which every process must use", said if found.user else "it does not work"


def _pair(pair: Pair) -> Iterator[Sequence[str]]:
    yield "server", f"{_said(pair.kind)} {pair.identity or ''}".strip()
    for kind, path in pair.paths.items():
        for name in pair.statistics.get("path_order", {}).get(kind, ())[:-1]:
            only = providers.by_name()[name].takes_only
            yield f"large frames ({kind} memory)", f"{name} for {only}"
        yield f"large frames ({kind} memory)", path + _trial(pair, kind, path)
    for path, reason in pair.refused.items():
        if path != STREAM or not any(pair.trials.values()):  # else it is the one in use
            yield f"not {path}", reason
    yield "control stream", pair.control_stream
    yield "encrypted", pair.cipher or "no"
    yield "addresses", f"{pair.local_address} to {pair.peer_address}"
    yield "connect", duration(pair.connect_seconds)
    yield "round trip", duration(pair.round_trip_seconds)
    versions = {name: both for name, both in pair.versions.items() if any(both)}
    same = [f"{name} {here}" for name, (here, there) in versions.items() if here == there]
    if same:
        yield "same versions", ", ".join(same)
    for name, (here, there) in versions.items():
        if here != there:
            yield f"other {name}", f"{here or 'none'} here, {there or 'none'} there"


def _trial(pair: Pair, kind: str, path: str) -> str:
    if path == STREAM:
        return ""
    reason = pair.trials.get(path) if kind == HOST else None  # none of a GPU's memory is sent
    if reason is None:
        return ", agreed on, and not tried with a frame"
    return f" does not work: {reason}" if reason else f", tried with {format_bytes(FRAME_BYTES)}"


def _advice(advice: Sequence[Advice], width: int) -> list[str]:
    lines = ["Advice"] if advice else ["No advice."]
    for one in advice:
        lines += wrapped(f"{one.about}: {one.reason}", _GAP, width)
        if one.remedy:
            lines += wrapped(one.remedy, f"{2 * _GAP}-> ", width)
    return lines


def speed(bytes_per_second: float | None) -> str:
    """Write a bandwidth."""
    return _UNKNOWN if bytes_per_second is None else f"{bytes_per_second / 1e9:.2f} GB/s"


def duration(seconds: float | None) -> str:
    """Write a short time."""
    if seconds is None:
        return _UNKNOWN
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def size(count: Limit) -> str:
    """Write a limit in bytes."""
    return format_bytes(count) if isinstance(count, int) else _said(count)


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _UNKNOWN if value is None else str(value)


def _pair_of(one: int | None, other: int | None) -> str:
    return f"{size(one)}, {size(other)}"
