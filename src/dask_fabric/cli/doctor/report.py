"""All facts about this host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dask_fabric import config, providers
from dask_fabric.cli.configuration import Configuration, inspect_configuration
from dask_fabric.cli.doctor.host import (
    Host,
    Identity,
    Limits,
    inspect_host,
    inspect_identity,
    inspect_limits,
)
from dask_fabric.cli.doctor.network import Interface, inspect_interfaces
from dask_fabric.cli.doctor.selftest import PathResult, SelfTest
from dask_fabric.comm.network.reachability import explain
from dask_fabric.gpu.rdma import RdmaDevice, inspect_rdma
from dask_fabric.gpu.survey import Gpu, inspect_gpus, inspect_modules


@dataclass(frozen=True)
class Facts:
    """The facts; parts that could not be inspected have their default values.

    Attributes
    ----------
    details : dict of str to object
        The result of `Provider.inspect`, by the path's name.
    failures : dict of str to str
        Why a part could not be inspected, by its name here.
    """

    host: Host = field(default_factory=Host)
    limits: Limits = field(default_factory=Limits)
    identity: Identity = field(default_factory=Identity)
    interfaces: tuple[Interface, ...] = ()
    rdma: tuple[RdmaDevice, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    gpus: tuple[Gpu, ...] = ()
    gpu_modules: tuple[str, ...] = ()
    configuration: Configuration = field(default_factory=Configuration)
    paths: tuple[PathResult, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)

    def path(self, name: str) -> PathResult:
        """Give the result of one path."""
        for result in self.paths:
            if result.path == name:
                return result
        return PathResult(name, False, self.failures.get("paths", "it was not tried"))


def inspect_all(root: Path = Path("/"), selftest: Callable[[], Any] = SelfTest) -> Facts:
    """Inspect everything while the self-test runs.

    Parameters
    ----------
    root : Path
        Where ``proc``, ``sys`` and ``dev`` are.
    selftest : callable
        Starts the self-test, and returns an object like `SelfTest`.
    """
    found: dict[str, Any] = {}
    failures: dict[str, str] = {}

    def look(name: str, function: Callable[[], Any]) -> Any:
        try:
            found[name] = function()
        except Exception as exc:  # the report must be printed in any case
            failures[name] = f"{exc.__class__.__name__}: {explain(exc)}"
        return found.get(name)

    test = look("paths", selftest)
    try:
        _inspect_host(root, look)
    except BaseException:  # such as control-C, which the test's processes do not receive
        if test is not None:
            test.stop()
        raise
    if test is not None:
        found.pop("paths")
        look("paths", test.finish)
    return Facts(**found, failures=failures)


def _inspect_host(root: Path, look: Callable[[str, Callable[[], Any]], Any]) -> None:
    look("host", partial(inspect_host, root))
    look("limits", partial(inspect_limits, root))
    look("identity", partial(inspect_identity, root))
    interfaces = look("interfaces", partial(inspect_interfaces, root)) or ()
    rdma = look("rdma", partial(inspect_rdma, root)) or ()
    look("configuration", inspect_configuration)
    look("details", _inspect_paths)
    look("gpus", partial(inspect_gpus, root, network_devices(interfaces, rdma)))
    look("gpu_modules", partial(inspect_modules, root))


def _inspect_paths() -> dict[str, Any]:
    settings = config.load()
    return {
        one.name: found
        for one in providers.found()
        if (found := one.inspect(settings.of_path(one.name))) is not None
    }


def network_devices(interfaces: tuple[Interface, ...], rdma: tuple[RdmaDevice, ...]) -> list:
    """Give names and places of RDMA devices, or without any, of network interfaces."""
    return [(device.name, device.place) for device in rdma or interfaces if device.place]
