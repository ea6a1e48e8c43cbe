"""Clusters that start by ssh, on an sshd of their own that knows one key."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import SECONDS, assert_all_over_fabric, commands_of, program

PAGE = "howto/deploy/ssh.md"
HOSTS = {"node1": "127.0.0.1", "node2": "127.0.0.2"}


@pytest.fixture
def sshd(request, folder, free_port) -> int:
    """The port of a server; `folder` has a home whose ssh configuration knows how to log in."""
    sshd, keygen = program("sshd", "openssh-server"), program("ssh-keygen", "openssh-client")
    if not os.geteuid():  # where root's sshd has no rights; Debian's start of the service makes it
        Path("/run/sshd").mkdir(exist_ok=True)
    home, port = folder.path / "home", free_port()
    (home / ".ssh").mkdir(parents=True)
    for name in ("host", "home/.ssh/id_ed25519"):
        key = folder.path / name
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    configuration = {
        "Port": port,
        "HostKey": folder.path / "host",
        "AuthorizedKeysFile": home / ".ssh" / "id_ed25519.pub",
        "PidFile": "none",
        "StrictModes": "no",  # folders of pytest may be readable for all
        "UsePAM": "no",
    }
    if getattr(request, "param", "") == "key":  # a home that all hosts share
        settings = {"AUTH__KEY_FILE": folder.make_key(), "AUTH__REQUIRE": "true"}
        words = (f"DASK_FABRIC__{name}={value}" for name, value in settings.items())
        configuration["SetEnv"] = " ".join(words)
    file = folder.path / "sshd_config"
    file.write_text("".join(f"{name} {value}\n" for name, value in configuration.items()))
    public = (folder.path / "host.pub").read_text()
    known = home / ".ssh" / "known_hosts"
    known.write_text("".join(f"[{address}]:{port} {public}" for address in HOSTS.values()))
    (home / ".ssh" / "config").write_text(
        "".join(
            f"Host {name}\n  HostName {address}\n  Port {port}\n  User {getpass.getuser()}\n"
            for name, address in HOSTS.items()
        )
    )
    folder.environment["HOME"] = str(home)
    folder.save(PAGE)
    with folder.start(sshd, "-D", "-e", "-f", file) as process:
        _until_listening(port, process, folder.log)
        yield port


def _until_listening(port: int, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
            return
        time.sleep(0.1)
    pytest.fail(f"sshd does not listen: {log.read_text()}")


@pytest.mark.parametrize("sshd", ["open", "key"], indirect=True)
def test_a_cluster_from_a_program(folder, sshd):
    pytest.importorskip("asyncssh")
    assert_all_over_fabric(folder.run(sys.executable, "cluster.py"), workers=2)


def test_a_cluster_from_a_terminal(folder, sshd, free_port):
    pytest.importorskip("paramiko")
    start, check = commands_of(PAGE)
    port = free_port()
    key = folder.path / "home" / ".ssh" / "id_ed25519"
    options = f"--ssh-port {sshd} --ssh-private-key {key} --scheduler-port {port}"
    start = _at_hosts(start).replace("dask ssh", f"exec dask ssh {options}")
    with folder.start("sh", "-c", start):
        output = folder.run("sh", "-c", _at_hosts(check).replace("8786", str(port)))
    assert_all_over_fabric(output, workers=2)


def _at_hosts(command: str) -> str:
    return re.sub("node[12]", lambda found: HOSTS[found[0]], command)
