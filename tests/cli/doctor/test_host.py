"""Limits, permissions and namespaces, from a tree of files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dask_fabric.cli.doctor.host import (
    Identity,
    Limits,
    inspect_host,
    inspect_identity,
    inspect_limits,
)

PROCESS_LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max open files            1024                 524288               files
Max locked memory         {memlock}              unlimited            bytes
"""


def test_nothing_is_known_of_an_empty_root(tmp_path):
    expected = Limits(ptrace_scope=0)  # a kernel without Yama restricts nothing
    assert inspect_limits(tmp_path) == expected
    assert inspect_identity(tmp_path, {}) == Identity(
        None, {"pid": None, "user": None, "net": None, "ipc": None}, ""
    )


@pytest.mark.parametrize(
    ("text", "expected"), [("unlimited", "unlimited"), ("65536    ", 65536), ("odd", None)]
)
def test_limits_of_the_process(tree, text, expected):
    tree.write("proc/self/limits", PROCESS_LIMITS.format(memlock=text))
    limits = inspect_limits(tree.root)
    assert limits.memlock_bytes == expected
    assert limits.open_file_count == 1024


def test_limits_of_the_kernel(tree):
    tree.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
    tree.write("sys/kernel/mm/transparent_hugepage/shmem_enabled", "always [never] deny")
    tree.write("proc/sys/vm/nr_hugepages", 7)
    tree.write("proc/sys/net/core/somaxconn", 128)
    tree.write("proc/sys/net/core/wmem_max", 212992)
    tree.write("proc/sys/net/core/rmem_max", 212993)
    tree.write("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304")
    tree.write("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456")
    (tree.root / "dev/shm").mkdir(parents=True)
    found = inspect_limits(tree.root)
    assert found.shm_bytes >= found.shm_free_bytes > 0
    assert dataclasses.replace(found, shm_bytes=None, shm_free_bytes=None) == Limits(
        transparent_huge_pages="madvise",
        shmem_huge_pages="never",
        reserved_huge_page_count=7,
        somaxconn_count=128,
        wmem_max_bytes=212992,
        rmem_max_bytes=212993,
        tcp_wmem_max_bytes=4194304,
        tcp_rmem_max_bytes=6291456,
        ptrace_scope=0,
    )


@pytest.mark.parametrize(("text", "scope"), [("1", 1), ("3", 3), ("odd", None)])
def test_ptrace_scope(tree, text, scope):
    tree.write("proc/sys/kernel/yama/ptrace_scope", text)
    assert inspect_limits(tree.root).ptrace_scope == scope


@pytest.mark.parametrize(
    ("status", "may_trace_all", "seccomp"),
    [
        ("CapEff:\t000001ffffffffff\nSeccomp:\t0", True, False),
        ("CapEff:\t0000000000000000\nSeccomp:\t2", False, True),
        ("CapEff:\t0000000000080000\nSeccomp:\t?", True, None),
        ("CapEff:\todd", None, None),
    ],
)
def test_permissions(tree, status, may_trace_all, seccomp):
    tree.write("proc/self/status", status)
    found = inspect_limits(tree.root)
    assert (found.may_trace_all, found.seccomp) == (may_trace_all, seccomp)


@pytest.mark.parametrize(
    ("kind", "number", "own"),
    [
        ("pid", 4026531836, False),
        ("pid", 4026532999, True),
        ("user", 4026531837, False),
        ("user", 4026531836, True),
    ],
)
def test_namespaces(tree, kind, number, own):
    tree.link(f"proc/self/ns/{kind}", f"{kind}:[{number}]")
    tree.link("proc/self/ns/net", "odd")
    tree.write("proc/sys/kernel/random/boot_id", "b-o-o-t")
    found = inspect_identity(tree.root, {})
    assert found.boot_id == "b-o-o-t"
    unknown = dict.fromkeys(("pid", "user", "net", "ipc"))
    assert found.namespaces == {**unknown, kind: number}
    assert [name for name in ("pid", "user") if found.has_own(name)] == [kind] * own


@pytest.mark.parametrize(
    ("file", "environment", "name"),
    [
        (".dockerenv", {}, "docker"),
        ("run/.containerenv", {}, "podman"),
        (".singularity.d/runscript", {}, "apptainer"),
        (".dockerenv", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ("other", {"container": "lxc"}, "lxc"),
        ("other", {}, ""),
    ],
)
def test_containers(tree, file, environment, name):
    tree.write(file)
    assert inspect_identity(tree.root, environment).container == name


def test_this_host():
    host = inspect_host()
    assert host.cpu_count >= 1 and host.memory_bytes > 2**20
    assert host.packages["dask-fabric"] and host.packages["distributed"]
    assert inspect_limits().open_file_count is not None
    assert Path("/proc/self/ns/pid").exists() == (inspect_identity().namespaces["pid"] is not None)
