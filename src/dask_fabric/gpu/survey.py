"""All GPUs of this host, usable or not, with the nearest network devices; for reports."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dask_fabric.gpu.files import names_in, read_fields, read_text
from dask_fabric.gpu.pci import Place, nearest, place_at

_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD"}
# Display controllers, and AMD's "processing accelerators"; see pci.ids.
_GPU_CLASSES = ("0x0300", "0x0302", "0x0380", "0x1200")
_QUERY = ("index", "name", "uuid", "pci.bus_id", "memory.total", "driver_version")
_PATIENCE_SECONDS = 10
_MODULES = ("nvidia_peermem", "nv_peer_mem", "gdrdrv")


@dataclass(frozen=True)
class Gpu:
    """One GPU; None means unknown.

    Attributes
    ----------
    usable : bool
        Whether its driver reports it; else it was only found on the bus.
    nearest : tuple of str
        The nearest network devices.
    nearest_by : str
        Their distance: one of `dask_fabric.gpu.pci.NEARNESS`.
    """

    name: str
    usable: bool
    uuid: str | None
    memory_bytes: int | None
    driver: str | None
    place: Place | None
    nearest: tuple[str, ...] = ()
    nearest_by: str = "unknown"


def ask_nvidia_smi() -> str:
    """Give the table that ``nvidia-smi`` prints, or "" if it is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def inspect_gpus(
    root: Path = Path("/"),
    devices: Iterable[tuple[str, Place | None]] = (),
    ask: Callable[[], str] = ask_nvidia_smi,
) -> tuple[Gpu, ...]:
    """List the GPUs that the driver reports, and others on the bus.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` are mounted.
    devices : iterable of (str, Place or None)
        Names and places of the network devices.
    ask : callable
        Gives the output of ``nvidia-smi``.
    """
    found = _of_nvidia_smi(root, ask()) or _of_driver(root)
    known = {gpu.place.address for gpu in found if gpu.place}
    found += [gpu for gpu in _of_bus(root) if gpu.place and gpu.place.address not in known]
    devices = tuple(devices)
    return tuple(_with_nearest(gpu, devices) for gpu in found)


def inspect_modules(root: Path = Path("/")) -> tuple[str, ...]:
    """Name the loaded kernel modules that let network cards access GPU memory."""
    return tuple(name for name in _MODULES if (root / "sys/module" / name).exists())


def _of_nvidia_smi(root: Path, table: str) -> list[Gpu]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(table.splitlines())]
    return [
        Gpu(
            name=name,
            usable=True,
            uuid=uuid,
            memory_bytes=int(memory) << 20 if memory.isdecimal() else None,
            driver=driver,
            place=place_at(bus, root),
        )
        for _, name, uuid, bus, memory, driver in (row for row in rows if len(row) == len(_QUERY))
    ]


def _of_driver(root: Path) -> list[Gpu]:
    folder = root / "proc/driver/nvidia"
    found = []
    for name in names_in(folder / "gpus"):
        fields = read_fields(folder / "gpus" / name / "information")
        found.append(
            Gpu(
                name=fields.get("Model") or "NVIDIA GPU",
                usable=True,
                uuid=fields.get("GPU UUID"),
                memory_bytes=None,
                driver=_driver_version(folder),
                place=place_at(name, root),
            )
        )
    return found


def _driver_version(folder: Path) -> str | None:
    # NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 ...
    words = (read_text(folder / "version") or "").partition("Module")[2].split()
    return next((word for word in words if word[0].isdigit()), None)


def _of_bus(root: Path) -> list[Gpu]:
    folder = root / "sys/bus/pci/devices"
    found = []
    for address in names_in(folder):
        vendor = _VENDORS.get(read_text(folder / address / "vendor") or "")
        if vendor and (read_text(folder / address / "class") or "").startswith(_GPU_CLASSES):
            driver = (folder / address / "driver").resolve().name
            usable = vendor == "AMD" and driver == "amdgpu"
            device = read_text(folder / address / "device") or "of unknown kind"
            found.append(
                Gpu(
                    name=f"{vendor} {device}",
                    usable=usable,
                    uuid=None,
                    memory_bytes=None,
                    driver=None if driver == "driver" else driver,
                    place=place_at(address, root),
                )
            )
    return found


def _with_nearest(gpu: Gpu, devices: tuple[tuple[str, Place | None], ...]) -> Gpu:
    names, by = nearest(gpu.place, devices)
    return replace(gpu, nearest=names, nearest_by=by)
