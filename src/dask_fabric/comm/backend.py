"""The backend of each scheme, found by the entry points ``distributed.comm.backends``."""

from __future__ import annotations

import socket
from typing import Any, ClassVar

from distributed.comm.addressing import parse_host_port, unparse_host_port
from distributed.comm.registry import Backend

from dask_fabric.comm.connector import FabricConnector
from dask_fabric.comm.listener import FabricListener
from dask_fabric.comm.logs import log_as_dask
from dask_fabric.comm.network.addresses import advertised_host, resolve_blocking, route_source
from dask_fabric.comm.network.security import Scheme

log_as_dask()


class FabricBackend(Backend):
    """``fabric://``: the best paths that both ends have; encrypted if Dask passes a TLS context."""

    scheme: ClassVar[Scheme] = Scheme("fabric", tls="if given", fast=True)

    def __init__(self) -> None:
        self._connector = FabricConnector(self.scheme)

    def get_connector(self) -> FabricConnector:
        return self._connector

    def get_listener(
        self, loc: str, handle_comm: Any, deserialize: bool, **connection_args: Any
    ) -> FabricListener:
        return FabricListener(self.scheme, loc, handle_comm, deserialize, **connection_args)

    def get_address_host(self, loc: str) -> str:
        return parse_host_port(loc)[0]

    def get_address_host_port(self, loc: str) -> tuple[str, int]:
        return parse_host_port(loc)

    def resolve_address(self, loc: str) -> str:
        """Replace the host in *loc* by its IP address."""
        host, port = parse_host_port(loc)
        return unparse_host_port(resolve_blocking(host), port)

    def get_local_address_for(self, loc: str) -> str:
        """Give the host, without a port, on which to listen for the peer at *loc*."""
        host = resolve_blocking(parse_host_port(loc)[0])
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return unparse_host_port(route_source(host, (family,)) or advertised_host((family,)))


class StreamBackend(FabricBackend):
    """``fabric+tcp://``: everything by TCP, never encrypted."""

    scheme = Scheme("fabric+tcp", tls="never")


class TLSBackend(FabricBackend):
    """``fabric+tls://``: everything inside TLS, by certificates or the shared key."""

    scheme = Scheme("fabric+tls", tls="always")


class UCXBackend(FabricBackend):
    """``fabric+ucx://``: large frames travel by UCX, or the connection fails."""

    scheme = Scheme("fabric+ucx", tls="never", fast=True)


class OFIBackend(FabricBackend):
    """``fabric+ofi://``: large frames travel by libfabric, or the connection fails."""

    scheme = Scheme("fabric+ofi", tls="never", fast=True)
