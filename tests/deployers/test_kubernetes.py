"""The commands of the pods of a Kubernetes cluster, as processes of this host."""

from __future__ import annotations

import yaml

from .conftest import assert_all_over_fabric, files_of

PAGE = "howto/deploy/kubernetes.md"
SERVICE = "demo-scheduler"


def test_the_commands_of_the_pods(folder, free_port):
    spec = yaml.safe_load(files_of(PAGE)["cluster.yaml"])["spec"]
    ports = {name: str(free_port()) for name in ("8786", "8787", "8788", "8789")}

    def here(text: str) -> str:
        """Replace what Kubernetes would: the name of the service, and ports that others use."""
        text = text.replace(SERVICE, "localhost").replace("$(DASK_WORKER_NAME)", "pod")
        for inside, outside in ports.items():
            text = text.replace(inside, outside)
        return text

    (scheduler,) = spec["scheduler"]["spec"]["containers"]
    (worker,) = spec["worker"]["spec"]["containers"]
    environment = {entry["name"]: here(entry["value"]) for entry in worker["env"]}
    with (
        folder.start(*map(here, scheduler["args"])),
        folder.start(*map(here, worker["args"]), **environment),
    ):
        output = folder.run("python", "check.py", f"tcp://localhost:{ports['8786']}", "1")
        assert "worker fabric://" in output
        output = folder.run("python", "check.py", f"fabric://localhost:{ports['8789']}", "1")
        assert_all_over_fabric(output, workers=1)


def test_each_port_of_the_service_is_one_of_the_scheduler():
    spec = yaml.safe_load(files_of(PAGE)["cluster.yaml"])["spec"]["scheduler"]
    (scheduler,) = spec["spec"]["containers"]
    assert [port["containerPort"] for port in scheduler["ports"]] == [
        port["port"] for port in spec["service"]["ports"]
    ]
