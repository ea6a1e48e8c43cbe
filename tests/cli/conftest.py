"""Hosts made of files: what the kernel shows in ``proc``, ``sys`` and ``dev``, as a tree."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed.security import Security


class Tree:
    """A root folder that is filled as a test needs it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: object = "") -> Path:
        """Make a file, with the folders that lead there."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
        return file

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link; a target that begins with a slash is one below the root."""
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(self.root / target[1:] if target.startswith("/") else target)

    def pci(self, *bridges: str, **files: object) -> str:
        """Put a device on the bus, below the bridges; returns its folder, from the root."""
        folder = f"sys/devices/{'/'.join(bridges)}"
        for name, text in {"vendor": "0x0000", **files}.items():
            self.write(f"{folder}/{name}", text)
        self.link(f"sys/bus/pci/devices/{bridges[-1]}", f"/{folder}")
        return folder

    def rdma(self, name: str, device: str, number: int = 0, **port: str) -> None:
        """Make an RDMA device with one port, on a PCI device that `pci` made."""
        files = {
            "state": "4: ACTIVE",
            "phys_state": "5: LinkUp",
            "rate": "400 Gb/sec (4X NDR)",
            "link_layer": "InfiniBand",
        }
        for file, text in {**files, **port}.items():
            self.write(f"sys/class/infiniband/{name}/ports/1/{file}", text)
        self.link(f"sys/class/infiniband/{name}/device", f"/{device}")
        self.write(f"sys/class/infiniband_verbs/uverbs{number}/ibdev", name)


@pytest.fixture
def tree(tmp_path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def certificates(temporary_security: Security) -> dict[str, str]:
    """Settings of Dask's that name certificates for workers."""
    return {
        "distributed.comm.tls.ca-file": temporary_security.tls_ca_file,
        "distributed.comm.tls.worker.cert": temporary_security.tls_worker_cert,
        "distributed.comm.tls.worker.key": temporary_security.tls_worker_key,
    }
