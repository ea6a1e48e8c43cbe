"""From facts to advice: why a path is not in use, or slow, and a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from dask_fabric import config, providers
from dask_fabric.cli.configuration import SOCKET_BACKLOG
from dask_fabric.cli.doctor.host import Limit
from dask_fabric.cli.doctor.pair import PATHS, SCHEMES, STREAM, TLS, UNIX
from dask_fabric.cli.doctor.report import Facts
from dask_fabric.comm.network.unix import SEND_BUFFER_BYTES
from dask_fabric.paths.provider import Advice, Provider
from dask_fabric.wire.hello import MUNGE

_MEMLOCK_BYTES = 64 << 30
_OPEN_FILE_COUNT = 4096
_TCP_BUFFER_BYTES = 16 << 20
_FAST_MBIT = 10_000
_FAILS = "does not work"


@dataclass(frozen=True)
class SchemeUse:
    """The paths that comms of a scheme use."""

    within_host: str
    between_hosts: str


def advise(facts: Facts) -> tuple[Advice, ...]:
    """Give the advice that fits, the most important first."""
    return tuple(advice for rule in _RULES for advice in rule(facts))


def scheme_uses(facts: Facts) -> dict[str, SchemeUse]:
    """Give the paths that every scheme would use between processes like this one."""
    if facts.configuration.error:
        return dict.fromkeys(SCHEMES, _refused("the configuration"))
    must, can = facts.configuration.require_encryption, facts.configuration.certificates
    by_key = facts.configuration.value("auth.encrypt") is True
    tls = _by_stream(facts, TLS, "TLS") if can or by_key else _refused("no certificates")
    tcp = _refused("not encrypted") if must or by_key else _by_stream(facts, STREAM, "TCP")
    of_paths = {one.scheme: _by_one_path(facts, one) for one in providers.found() if one.scheme}
    if by_key:
        of_paths = dict.fromkeys(of_paths, _refused("not encrypted"))
    local = facts.configuration.value("auth.encrypt-local") is True
    everywhere = can or must or (by_key and local)
    best = tls if everywhere else _best(facts)
    if by_key and not everywhere:
        best = SchemeUse(best.within_host, tls.between_hosts)
    return {"fabric": best, "fabric+tcp": tcp, "fabric+tls": tls, **of_paths}


def _refused(reason: str) -> SchemeUse:
    return SchemeUse(f"refused: {reason}", f"refused: {reason}")


def _best(facts: Facts) -> SchemeUse:
    stream = _by_stream(facts, STREAM, "TCP")
    within = "Unix socket" if facts.path(UNIX).works else stream.within_host
    # The path on which a pair of fabric:// has agreed; others may work, but are not preferred.
    tried = [facts.path(one.name) for one in providers.found() if _is_for_all(one)]
    agreed = next((one.path for one in tried if one.works), "")
    agreed = agreed or next((one.instead for one in tried if one.instead), "")
    if agreed in providers.by_name() and facts.path(agreed).works:
        within = f"{agreed} for large frames"
    if within != _FAILS:
        some = [
            one
            for one in providers.found()
            if one.takes_only and not one.extends_stream and facts.path(one.name).works
        ]
        within = ", ".join([*(f"{one.name} for {one.takes_only}" for one in some), within])
    between = next((one.name for one in providers.found() if _reach(facts, one)), "")
    return SchemeUse(within, f"{between} for large frames" if between else stream.between_hosts)


def _is_for_all(provider: Provider) -> bool:
    """Whether ``fabric://`` may send every large frame by a path."""
    return not provider.takes_only and not provider.scheme


def _by_stream(facts: Facts, path: str, name: str) -> SchemeUse:
    # A path that fails within the host may still reach others, for instance if only `lo` is down.
    return SchemeUse(name, name) if facts.path(path).works else SchemeUse(_FAILS, "unknown")


def _by_one_path(facts: Facts, provider: Provider) -> SchemeUse:
    if not facts.path(provider.name).works:
        return SchemeUse(_FAILS, _FAILS)
    reach = _reach(facts, provider)
    how = f"by {reach}" if reach else "without RDMA"
    return SchemeUse(provider.name, f"{provider.name} {how}")


def _reach(facts: Facts, provider: Provider) -> str:
    """Name the network by which a path that works here reaches other hosts, or ""."""
    return provider.reach(facts) if facts.path(provider.name).works else ""


# ---- remedies of paths


def _remedy_for_stream(facts: Facts) -> str:
    if facts.configuration.error:
        return "correct the configuration"
    if facts.configuration.require_encryption and not facts.configuration.certificates:
        return _remedy_for_tls(facts)
    loopback = [one.name for one in facts.interfaces if one.kind == "loopback" and not one.up]
    return f"ip link set {loopback[0]} up" if loopback else ""


def _remedy_for_unix(facts: Facts) -> str:
    if facts.configuration.error:
        return _remedy_for_stream(facts)
    if facts.configuration.value("unix-sockets") is False:
        return "set fabric.unix-sockets: true"
    if facts.configuration.require_encryption:
        return "none: required encryption means TLS only"
    if facts.configuration.value("auth.encrypt-local") is True:
        return "none: fabric.auth.encrypt-local means TLS only"
    return _remedy_for_stream(facts)


def _remedy_for_tls(facts: Facts) -> str:
    if facts.configuration.error:
        return _remedy_for_stream(facts)
    by_certificates = (
        "name your certificates under distributed.comm.tls, or give a Security object to cluster "
        "and client"
    )
    if facts.configuration.value("auth.method") == MUNGE:
        return f"if you want encryption, which MUNGE has none of: {by_certificates}"
    by_key = "`dask fabric key create` and fabric.auth.encrypt: true"
    return f"if you want encryption: {by_key}; or {by_certificates}"


def _remedy_of(provider: Provider, facts: Facts) -> str:
    if facts.configuration.error or facts.configuration.require_encryption:
        return _remedy_for_unix(facts)
    if facts.configuration.value("auth.encrypt") is True and provider.scheme:
        return "none: fabric.auth.encrypt means TLS between hosts"
    return provider.remedy(facts)


_REMEDIES: dict[str, Callable[[Facts], str]] = {
    STREAM: _remedy_for_stream,
    UNIX: _remedy_for_unix,
    TLS: _remedy_for_tls,
    **{one.name: partial(_remedy_of, one) for one in providers.found()},
}


# ---- rules; each yields its advice


def _paths(facts: Facts) -> Iterator[Advice]:
    for path in PATHS:
        result = facts.path(path)
        if not result.works:
            yield Advice(path, result.reason, _REMEDIES[path](facts))


def _configuration(facts: Facts) -> Iterator[Advice]:
    if facts.configuration.error:
        yield Advice(
            "configuration",
            facts.configuration.error,
            "correct the value: until then no fabric:// address works",
        )
    for name in facts.configuration.unknown:
        near = config.near(name.removeprefix(f"{config.SECTION}."))
        yield Advice(
            "configuration",
            f"unknown key {name} is ignored",
            f"did you mean {near}?" if near else "`dask config get fabric` shows all keys",
        )


def _authentication(facts: Facts) -> Iterator[Advice]:
    found = facts.configuration
    has_method = found.keys or found.value("auth.method") == MUNGE
    if found.certificates is False and not has_method and not found.error:
        yield Advice(
            "authentication",
            "none: whoever reaches a port of a scheduler or worker can run code as its user, as "
            "with Dask's tcp://",
            "on a machine or network that others use: `dask fabric key create`",
        )


def _rdma_devices(facts: Facts) -> Iterator[Advice]:
    for device in facts.rdma:
        if not device.active:
            states = ", ".join(str(port.state or "unknown").lower() for port in device.ports)
            yield Advice(
                device.name,
                f"none of its ports is active ({states or 'it has none'})",
                "down: cable or switch; init: no subnet manager runs (opensm); for RoCE: "
                "ip link set ... up",
            )
        elif not device.may_use_verbs:
            yield Advice(
                device.name,
                f"this process may not open {device.verbs or '/dev/infiniband/uverbs*'}",
                "in a container: --device=/dev/infiniband; else the module ib_uverbs, and its "
                "udev rules (rdma-core)",
            )


def _rdma_memory(facts: Facts) -> Iterator[Advice]:
    if facts.rdma and _below(facts.limits.memlock_bytes, _MEMLOCK_BYTES):
        yield Advice(
            "locked memory",
            f"RDMA needs locked memory, but only {_mib(facts.limits.memlock_bytes)} may be locked",
            "memlock unlimited in /etc/security/limits.conf, LimitMEMLOCK=infinity for slurmd "
            "and the like, docker run --ulimit memlock=-1",
        )


def _of_paths(facts: Facts) -> Iterator[Advice]:
    for provider in providers.found():
        yield from provider.advice(facts)


def _gpus(facts: Facts) -> Iterator[Advice]:
    for gpu in facts.gpus:
        if not gpu.usable:
            yield Advice(
                gpu.name,
                f"it is on the bus at {gpu.place.address if gpu.place else 'an unknown place'}, "
                "but no driver offers it here",
                "load its driver; in a container: docker run --gpus all",
            )
    usable = [gpu for gpu in facts.gpus if gpu.usable]
    peers = {"nvidia_peermem", "nv_peer_mem"} & set(facts.gpu_modules)
    if usable and any(device.active for device in facts.rdma) and not peers:
        yield Advice(
            "GPUDirect",
            "no kernel module lets the network card access GPU memory",
            "modprobe nvidia_peermem; not needed if the open kernel driver supports dma-buf",
        )


def _interfaces(facts: Facts) -> Iterator[Advice]:
    own = [one for one in facts.interfaces if one.advertised and one.kind != "loopback"]
    for one in facts.interfaces:
        speed = one.speed_mbit if one.up and one.addresses and one.kind != "virtual" else None
        if speed and own and own[0].speed_mbit and speed > own[0].speed_mbit:
            yield Advice(
                one.name,
                f"it is faster than {own[0].name}, whose address a server here advertises",
                f"--interface {one.name} for scheduler and workers",
            )


def _links(facts: Facts) -> Iterator[Advice]:
    for device in facts.rdma:  # not GPUs: an idle one slows its link down on purpose
        place = device.place
        now, best = (place.link, place.best_link) if place else (None, None)
        if now and best and _gigatransfers(now) < _gigatransfers(best):
            yield Advice(
                device.name,
                f"its PCIe link is {now}, but could be {best}",
                "use another slot, or change the firmware's settings for this one",
            )


def _open_files(facts: Facts) -> Iterator[Advice]:
    if _below(facts.limits.open_file_count, _OPEN_FILE_COUNT):
        yield Advice(
            "open files",
            f"{facts.limits.open_file_count} per process are too few for a scheduler of many "
            "workers",
            "ulimit -n 65536, or nofile in /etc/security/limits.conf",
        )


def _huge_pages(facts: Facts) -> Iterator[Advice]:
    if facts.limits.transparent_huge_pages == "never":
        yield Advice(
            "huge pages",
            "they are switched off, so large frames are received into small pages",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )


def _backlog(facts: Facts) -> Iterator[Advice]:
    wanted = facts.configuration.socket_backlog_count
    if wanted is not None and _below(facts.limits.somaxconn_count, wanted):
        yield Advice(
            "somaxconn",
            f"{facts.limits.somaxconn_count} is less than {SOCKET_BACKLOG}, {wanted}: many "
            "workers that start at once may have to connect again",
            f"sysctl -w net.core.somaxconn={wanted}",
        )


def _buffers(facts: Facts) -> Iterator[Advice]:
    wanted = SEND_BUFFER_BYTES // 2  # the kernel doubles it
    if facts.path(UNIX).works and _below(facts.limits.wmem_max_bytes, wanted):
        yield Advice(
            "wmem_max",
            f"{facts.limits.wmem_max_bytes} bytes are too small for the full speed of Unix sockets",
            f"sysctl -w net.core.wmem_max={wanted}",
        )
    speeds = [(one.name, one.speed_mbit or 0) for one in facts.interfaces if one.up]
    fast = [(interface, speed) for interface, speed in speeds if speed >= _FAST_MBIT]
    for name in ("tcp_rmem", "tcp_wmem"):
        if fast and _below(getattr(facts.limits, f"{name}_max_bytes"), _TCP_BUFFER_BYTES):
            yield Advice(
                name,
                f"its maximum is small for {fast[0][0]}, {fast[0][1] // 1000} Gb/s",
                f"sysctl -w net.ipv4.{name}='4096 131072 {_TCP_BUFFER_BYTES}'",
            )


_RULES: tuple[Callable[[Facts], Iterator[Advice]], ...] = (
    _configuration,
    _paths,
    _rdma_devices,
    _of_paths,
    _rdma_memory,
    _gpus,
    _interfaces,
    _links,
    _open_files,
    _huge_pages,
    _backlog,
    _buffers,
    _authentication,
)


def _below(limit: Limit, wanted: int) -> bool:
    return isinstance(limit, int) and limit < wanted


def _mib(count: Limit) -> str:
    return f"{count // (1 << 20)} MiB" if isinstance(count, int) else str(count)


def _gigatransfers(link: str) -> float:
    speed, _, width = link.partition(" GT/s x")
    return float(speed) * int(width)
