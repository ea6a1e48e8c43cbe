"""A real Slurm on this host: one controller, and daemons for four nodes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import end, program, unused_port

NODES = 4
SECONDS = 60
# The nodes claim more than this host has, so that jobs may ask for what sites have.
CONFIGURATION = """
ClusterName=fabric
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
{nodes}PartitionName=main Nodes=ALL Default=YES State=UP
"""
NODE = "NodeName=node{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
NODE += "CPUs=64 RealMemory=512000\n"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Run Slurm with its files in *folder*; gives what its commands need in their environment."""
    if os.geteuid():
        pytest.skip("Slurm's daemons run jobs of their own user only, unless started by root")
    munged = program("munged", "munge")
    slurmctld, slurmd = program("slurmctld", "slurmctld"), program("slurmd", "slurmd")
    program("sbatch", "slurm-client")
    configuration = _configure(folder)
    key = folder / "munge.key"
    key.touch(0o400)
    key.write_bytes(os.urandom(1024))
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
    options = [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
    with contextlib.ExitStack() as stack:

        def start(*command: str) -> None:
            log = stack.enter_context((folder / f"{len(list(folder.iterdir()))}.log").open("w"))
            process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, cwd=folder
            )
            stack.callback(end, process)

        # --force: a folder of pytest may be readable for all.
        start(munged, "--foreground", "--force", *options)
        _until(lambda: (folder / "munge.socket").exists(), folder)
        start(slurmctld, "-D", "-f", str(configuration))
        for number in range(1, NODES + 1):
            start(slurmd, "-D", "-f", str(configuration), "-N", f"node{number}")
        environment = {
            "SLURM_CONF": str(configuration),
            "MUNGE_SOCKET": str(folder / "munge.socket"),
        }
        _until(lambda: _idle_nodes(environment) == NODES, folder)
        yield environment
        cancel = ["scancel", "--user=root"]
        subprocess.run(cancel, env={**os.environ, **environment}, timeout=SECONDS)
        _until(lambda: _idle_nodes(environment) == NODES, folder)


def _configure(folder: Path) -> Path:
    host = socket.gethostname().partition(".")[0]
    nodes = ""
    for number in range(1, NODES + 1):
        (folder / f"node{number}").mkdir()
        nodes += NODE.format(number=number, host=host, port=unused_port())
    (folder / "state").mkdir()
    file = folder / "slurm.conf"
    file.write_text(CONFIGURATION.format(host=host, port=unused_port(), folder=folder, nodes=nodes))
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    return file


def _idle_nodes(environment: dict[str, str]) -> int:
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%t"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return done.stdout.split().count("idle")


def _until(condition, folder: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(log.read_text()[-2000:] for log in folder.glob("*.log"))
            pytest.fail(f"Slurm is not ready after {SECONDS} s:\n{logs}")
        time.sleep(0.2)
