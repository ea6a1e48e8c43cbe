"""Advice and schemes: from facts to reasons and remedies."""

from __future__ import annotations

import dataclasses

import pytest

from dask_fabric.cli.configuration import Configuration
from dask_fabric.cli.doctor.advice import advise, scheme_uses
from dask_fabric.cli.doctor.host import Host, Identity, Limits
from dask_fabric.cli.doctor.network import Interface
from dask_fabric.cli.doctor.pair import PATHS
from dask_fabric.cli.doctor.render import render
from dask_fabric.cli.doctor.report import Facts
from dask_fabric.cli.doctor.selftest import PathResult
from dask_fabric.gpu.pci import Place
from dask_fabric.gpu.rdma import RdmaDevice, RdmaPort
from dask_fabric.gpu.survey import Gpu
from dask_fabric.paths.ucx.survey import Library, Ucx

ALL_WORK = tuple(PathResult(path, True) for path in PATHS)
UCX_LIBRARY = Library("/opt/libucp.so.0", "site", "1.15.0", ("rc_mlx5",), True, True, "")
SHM = "shm for arrays in memory files"
NO_UCX = {"details": {"ucx": Ucx()}}
PORT = RdmaPort(1, "ACTIVE", "LinkUp", "400 Gb/sec (4X NDR)", "InfiniBand")
DEVICE = RdmaDevice("mlx5_0", None, (PORT,), ("ib0",), "/dev/infiniband/uverbs0", True, None)
GPU = Gpu("NVIDIA H200", True, None, None, None, None)
NO_LOOPBACK = Interface("lo", "loopback", False, (), False, None, 65536, None)
PLACE = Place("0000:17:00.0", (), None, "16.0 GT/s x8", "32.0 GT/s x8")


def ucx(**changed) -> dict:
    library = dataclasses.replace(UCX_LIBRARY, **changed)
    return {"details": {"ucx": Ucx(chosen=library)}}


def facts(*refused: str, reason: str = "a reason", instead: str = "", **parts) -> Facts:
    """Facts of a host without problems, except those given."""
    paths = tuple(
        PathResult(one.path, False, reason, instead=instead) if one.path in refused else one
        for one in ALL_WORK
    )
    return dataclasses.replace(Facts(paths=paths, **ucx()), **parts)


def interface(name: str, speed_mbit: int | None, advertised: bool = False, kind: str = "card"):
    return Interface(name, kind, True, ("10.0.0.1",), advertised, speed_mbit, 1500, None)


def test_nothing_to_say_where_all_is_well():
    assert advise(facts(rdma=(DEVICE,), gpus=(GPU,), gpu_modules=("nvidia_peermem",))) == ()


def test_where_nothing_is_known_only_paths_are_spoken_of():
    assert {one.about for one in advise(Facts())} == set(PATHS)
    assert all(one.reason for one in advise(Facts()))


def limits(**values) -> dict:
    return {"limits": Limits(**values)}


def configured(**values) -> dict:
    return {"configuration": Configuration(**values)}


BROKEN_UCX = configured(changed={"fabric.ucx.library": "/opt/libucp.so.0"})
OLD_HOST = {"host": Host(kernel="Linux 5.15.0-1017"), **limits(shmem_huge_pages="never")}
NEW_HOST = {"host": Host(kernel="Linux 6.1.0"), **limits(shmem_huge_pages="never")}
CASES = {
    "huge pages of memory files": (OLD_HOST, "switched off", "shmem_enabled"),
    "no huge pages of memory files": (limits(shmem_huge_pages="deny"), "off", "shmem_enabled"),
    "memlock": ({"rdma": (DEVICE,), **limits(memlock_bytes=8 << 20)}, "8 MiB", "memlock=-1"),
    "no key": (configured(certificates=False), "run code as its user", "key create"),
    "somaxconn": (
        {**limits(somaxconn_count=128), **configured(socket_backlog_count=2048)},
        "128",
        "net.core.somaxconn=2048",
    ),
    "wmem": (limits(wmem_max_bytes=212992), "212992", "net.core.wmem_max=1048576"),
    "tcp": (
        {"interfaces": (interface("eth0", 100_000),), **limits(tcp_rmem_max_bytes=6 << 20)},
        "eth0, 100 Gb/s",
        "net.ipv4.tcp_rmem",
    ),
    "huge pages": (limits(transparent_huge_pages="never"), "switched off", "madvise"),
    "open files": (limits(open_file_count=1024), "1024", "ulimit -n"),
    "shm": (limits(shm_bytes=64 << 20), "64 MiB", "--shm-size"),
    "pids": (
        {"identity": Identity(namespaces={"pid": 7})},
        "cma works within this one only",
        "--pid=host",
    ),
    "users": (
        {"identity": Identity(namespaces={"user": 7})},
        "not between containers without root",
        "--nworkers",
    ),
    "link down": (
        {"rdma": (dataclasses.replace(DEVICE, ports=(RdmaPort(1, "DOWN", None, None, None),)),)},
        "(down)",
        "cable",
    ),
    "no port": ({"rdma": (dataclasses.replace(DEVICE, ports=()),)}, "it has none", "cable"),
    "verbs": (
        {"rdma": (dataclasses.replace(DEVICE, may_use_verbs=False),)},
        "may not open /dev/infiniband/uverbs0",
        "--device=/dev/infiniband",
    ),
    "pcie": (
        {"rdma": (dataclasses.replace(DEVICE, place=PLACE),)},
        "16.0 GT/s x8, but could be 32.0 GT/s x8",
        "slot",
    ),
    "no verbs in UCX": (
        {
            "rdma": (DEVICE,),
            **ucx(has_rdma=False),
        },
        "/opt/libucp.so.0 is built without verbs and cannot use mlx5_0",
        "module load ucx",
    ),
    "no CUDA in UCX": (
        {
            "gpus": (GPU,),
            **ucx(has_gpu=False),
        },
        "/opt/libucp.so.0 is built without support for GPUs",
        "libucx-cu12",
    ),
    "no driver": (
        {"gpus": (dataclasses.replace(GPU, usable=False, place=PLACE),)},
        "0000:17:00.0",
        "--gpus all",
    ),
    "GPUDirect": ({"gpus": (GPU,), "rdma": (DEVICE,)}, "no kernel module", "nvidia_peermem"),
    "interface": (
        {"interfaces": (interface("eth0", 1000, True), interface("ib0", 200_000))},
        "faster than eth0",
        "--interface ib0",
    ),
    "unknown key": (configured(unknown=("fabric.odd",)), "fabric.odd", "config"),
    "bad value": (configured(error="fabric.x is 1; expected 2"), "expected 2", "correct"),
}


@pytest.mark.parametrize("name", CASES)
def test_advice(name):
    parts, reason, remedy = CASES[name]
    found = facts(**parts)
    (advice,) = advise(found)
    assert reason in advice.reason and remedy in advice.remedy
    (shown,) = render(found, scheme_uses(found), (advice,), 1000).split("\nAdvice\n")[1:]
    assert shown.split("\n") == [f"  {advice.about}: {advice.reason}", f"    -> {advice.remedy}"]


@pytest.mark.parametrize(
    "parts",
    [
        {"rdma": (DEVICE,), **limits(memlock_bytes="unlimited")},
        limits(memlock_bytes=8 << 20),  # without RDMA it does not matter
        limits(open_file_count=65536, transparent_huge_pages="always"),
        NEW_HOST,  # it makes them all the same
        {**OLD_HOST, **configured(changed={"fabric.shm.enabled": False})},
        {"interfaces": (interface("eth0", 1000, True), interface("veth1", 10_000, kind="virtual"))},
        {"interfaces": (interface("eth0", None, True), interface("ib0", 200_000))},
        {"identity": Identity(namespaces={"pid": 4026531836, "user": 4026531837})},
        {"gpus": (dataclasses.replace(GPU, place=PLACE),)},  # it saves energy
    ],
)
def test_what_is_well_gets_no_advice(parts):
    assert [one.about for one in advise(facts(**parts)) if one.about != "GPUDirect"] == []


@pytest.mark.parametrize(
    ("path", "parts", "remedy"),
    [
        ("stream", configured(error="bad"), "correct the configuration"),
        ("stream", configured(require_encryption=True, certificates=False), "certificates"),
        ("stream", {"interfaces": (NO_LOOPBACK,)}, "ip link set lo up"),
        ("unix", configured(changed={"fabric.unix-sockets": False}), "fabric.unix-sockets: true"),
        ("unix", configured(require_encryption=True), "TLS only"),
        ("tls", {}, "distributed.comm.tls"),
        ("cma", configured(changed={"fabric.cma.enabled": False}), "fabric.cma.enabled: true"),
        ("cma", limits(ptrace_scope=2), "ptrace_scope"),
        ("cma", limits(ptrace_scope=0, seccomp=True), "SYS_PTRACE"),
        ("cma", configured(require_encryption=True), "TLS only"),
        ("ucx", configured(changed={"fabric.ucx.enabled": False}), "fabric.ucx.enabled: auto"),
        ("ucx", configured(require_encryption=True), "TLS only"),
        ("ucx", {"rdma": (DEVICE,), **NO_UCX}, "module load ucx"),
        ("ucx", {"gpus": (GPU,), **NO_UCX}, "pip install"),
        (
            "ucx",
            NO_UCX,
            "not needed without RDMA devices and GPUs; else pip install",
        ),
        (
            "ucx",
            {**NO_UCX, **BROKEN_UCX},
            "works in fabric.ucx.library, or leave that out",
        ),
        (
            "ucx",
            {**NO_UCX, **BROKEN_UCX, "rdma": (DEVICE,)},
            "works in fabric.ucx.library",
        ),
        ("ucx", {}, "UCX_TLS"),  # it was found, and does not work all the same
        ("ucx", {"rdma": (DEVICE,)}, "UCX_TLS"),
    ],
)
def test_remedies_of_paths(path, parts, remedy):
    advice = {one.about: one for one in advise(facts(path, **parts))}[path]
    assert advice.reason == "a reason"
    assert remedy in advice.remedy


def test_a_path_that_root_may_use_needs_no_other_scope():
    found = facts("cma", **limits(ptrace_scope=3, may_trace_all=True))
    assert advise(found)[0].remedy == ""


# ---- schemes


def used(found: Facts) -> dict[str, tuple[str, str]]:
    return {name: dataclasses.astuple(use) for name, use in scheme_uses(found).items()}


def test_schemes_where_everything_works():
    assert used(facts(rdma=(DEVICE,), **configured(certificates=False))) == {
        "fabric": (f"{SHM}, cma for large frames", "ucx for large frames"),
        "fabric+tcp": ("TCP", "TCP"),
        "fabric+tls": ("refused: no certificates",) * 2,
        "fabric+ucx": ("ucx", "ucx by RDMA"),
        "fabric+ofi": ("ofi", "ofi without RDMA"),
    }


@pytest.mark.parametrize(
    ("refused", "instead", "within"),
    [
        (("cma",), "ucx", "ucx for large frames"),
        (("cma",), "stream", "Unix socket"),  # ucx works, and fabric:// does not take it
        (("cma",), "", "Unix socket"),
        (("cma", "ucx"), "ucx", "Unix socket"),  # its frames went by the stream
        (("cma", "ucx"), "stream", "Unix socket"),
        (("cma", "ucx", "unix"), "stream", "TCP"),
    ],
)
def test_the_best_path_within_a_host(refused, instead, within):
    assert used(facts("shm", *refused, instead=instead))["fabric"] == (within, "TCP")
    assert used(facts(*refused, instead=instead))["fabric"] == (f"{SHM}, {within}", "TCP")


def test_what_has_failed_within_the_host_is_not_promised():
    found = used(facts("stream", "tls", **configured(certificates=False)))
    assert found["fabric"] == (f"{SHM}, cma for large frames", "unknown")
    assert found["fabric+tcp"] == ("does not work", "unknown")
    assert used(facts("stream", "unix", "cma"))["fabric"] == ("does not work", "unknown")
    with_certificates = used(facts("tls", **configured(certificates=True)))
    assert with_certificates["fabric"] == with_certificates["fabric+tls"]
    assert with_certificates["fabric"] == ("does not work", "unknown")


@pytest.mark.parametrize(
    "parts",
    [
        {"rdma": (dataclasses.replace(DEVICE, may_use_verbs=False),)},
        {
            "rdma": (DEVICE,),
            **ucx(has_rdma=False),
        },
        {},
    ],
)
def test_rdma_needs_a_device_and_a_library(parts):
    assert used(facts(**parts))["fabric"][1] == "TCP"


def test_schemes_where_encryption_is_required():
    found = used(facts("ucx", **configured(require_encryption=True, certificates=True)))
    assert found["fabric"] == found["fabric+tls"] == ("TLS", "TLS")
    assert found["fabric+tcp"] == ("refused: not encrypted",) * 2
    assert found["fabric+ucx"] == ("does not work",) * 2
    bare = used(facts(**configured(require_encryption=True)))
    assert bare["fabric"] == ("refused: no certificates",) * 2


def test_schemes_where_the_key_encrypts():
    by_key = {"fabric.auth.encrypt": True}
    found = used(facts(**configured(changed=by_key, certificates=False)))
    assert found["fabric"] == (f"{SHM}, cma for large frames", "TLS")
    assert found["fabric+tls"] == ("TLS", "TLS")
    assert found["fabric+tcp"] == found["fabric+ucx"] == ("refused: not encrypted",) * 2
    for stricter in (
        configured(changed={**by_key, "fabric.auth.encrypt-local": True}),
        configured(changed=by_key, require_encryption=True),
    ):
        assert used(facts(**stricter))["fabric"] == ("TLS", "TLS")


def test_a_configuration_that_cannot_be_used_is_the_end_of_every_scheme():
    assert set(used(facts(**configured(error="bad"))).values()) == {
        ("refused: the configuration",) * 2
    }
