"""The whole report: it is complete on every kind of host."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from dask_fabric.cli.doctor import report
from dask_fabric.cli.doctor.advice import advise, scheme_uses
from dask_fabric.cli.doctor.pair import PATHS
from dask_fabric.cli.doctor.remote import Pair
from dask_fabric.cli.doctor.render import render, render_pair
from dask_fabric.cli.doctor.report import Facts, inspect_all
from dask_fabric.cli.doctor.selftest import PathResult
from dask_fabric.paths.ucx.survey import Library, Ucx

DOCUMENTATION = Path(__file__).parents[3] / "docs/doctor.md"
RESULTS = (
    PathResult("stream", True, "", 2.5e9, 48e-6),
    PathResult("shm", True, "", 9e11, 48e-6),
    PathResult("cma", False, "no\x1b[31m"),
)
LIBRARY = Library("/opt/ucx/libucp.so.0", "site", "1.15.0", ("rc_mlx5/mlx5_0:1",), True, False, "")


class Test:
    """A self-test whose results are known."""

    __test__ = False
    stopped = False

    def finish(self):
        return RESULTS

    def stop(self):
        Test.stopped = True


def text_of(facts: Facts, width: int = 100) -> str:
    return render(facts, scheme_uses(facts), advise(facts), width)


@pytest.fixture
def large(tree, monkeypatch):
    """A tree with something in every section."""
    found = {"ucx": Ucx(True, "it has mlx5_0", LIBRARY, "best")}
    monkeypatch.setattr(report, "_inspect_paths", lambda: found)
    card = tree.pci("pci0000:15", "0000:15:01.0", "0000:18:00.0", numa_node=0)
    gpu = {"vendor": "0x10de", "class": "0x030200", "device": "0x2335"}
    tree.pci("pci0000:15", "0000:15:01.0", "0000:17:00.0", numa_node=0, **gpu)
    tree.rdma("mlx5_0", card)
    tree.rdma("mlx5_1", card, 1, state="2: INIT", link_layer="Ethernet")
    tree.write("dev/infiniband/uverbs0")
    tree.write("proc/self/limits", "Max locked memory         65536    65536    bytes")
    return tree.root


def test_facts_of_a_large_host(large):
    facts = inspect_all(large, Test)
    assert facts.failures == {}
    assert facts.paths == RESULTS
    assert [device.name for device in facts.rdma] == ["mlx5_0", "mlx5_1"]
    assert facts.gpus[0].nearest == ("mlx5_0", "mlx5_1")
    assert facts.limits.memlock_bytes == 65536


@pytest.mark.parametrize("width", [80, 100])
def test_text_of_a_large_host(large, width):
    text = text_of(inspect_all(large, Test), width)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines if "distributed.comm" not in line)
    assert text.isascii() and "\x1b" not in text
    for words in (
        "2.50 GB/s, round trip 48 us",
        "nothing is copied, round trip 48 us",
        "chosen 1.15.0 at /opt/ucx/libucp.so.0 (site): best",
        "InfiniBand  ACTIVE",
        "nearest: mlx5_0, mlx5_1",
        "mlx5_1: none of its ports is active (init)",
        "locked memory: RDMA needs locked memory",
    ):
        assert words in " ".join(text.split()) or words in text


def test_text_where_nothing_is_known():
    text = text_of(Facts())
    assert "unknown" in text and "RDMA devices\n  none" in text


def test_the_report_in_the_documentation_is_one_of_ours():
    shown = DOCUMENTATION.read_text()
    states = {path: re.search(rf"^  {path} +(works|not in use)", shown, re.M)[1] for path in PATHS}
    paths = tuple(PathResult(path, state == "works") for path, state in states.items())
    text = text_of(Facts(paths=paths))
    schemes = text[text.index("Schemes\n") :].partition("\n\n")[0]
    assert schemes in shown


def test_every_part_may_fail(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise OSError("a bad disk")

    names = [name for name in vars(report) if name.startswith("inspect_") and name != "inspect_all"]
    for name in names:
        monkeypatch.setattr(report, name, fail)
    facts = inspect_all(tmp_path, fail)
    assert len(facts.failures) == len(names) + 1
    assert set(facts.failures.values()) == {"OSError: a bad disk"}
    assert facts.path("stream").reason == "OSError: a bad disk"
    assert "Could not be read" in text_of(facts)


def test_a_self_test_does_not_outlive_an_interrupt(monkeypatch, tmp_path):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "inspect_limits", interrupt)
    with pytest.raises(KeyboardInterrupt):
        inspect_all(tmp_path, Test)
    assert Test.stopped


def test_facts_are_plain_data(large):
    facts = dataclasses.asdict(inspect_all(large, Test))
    assert json.loads(json.dumps(facts))["limits"]["memlock_bytes"] == 65536


def pair_with(**parts) -> Pair:
    return Pair(**{**PAIR, **parts})


PAIR = dict(
    address="fabric://10.0.0.1:8786",
    local_address="fabric://10.0.0.2:40000",
    peer_address="fabric://10.0.0.1:8786",
    kind="Scheduler\x1b[2J",
    identity="Scheduler-1",
    control_stream="tcp",
    cipher=None,
    paths={"host": "ucx"},
    trials={"ucx": ""},
    used=("stream", "ucx"),
    refused={"cma": "another host"},
    connect_seconds=0.012,
    round_trip_seconds=48e-6,
    versions={
        "dask": ("1", "1"),
        "python": ("3.11", "3.12"),
        "lz4": ("4", None),
        "x": (None, None),
    },
)


def test_text_of_a_pair():
    text = render_pair(pair_with(), 100)
    assert "\x1b" not in text
    rows = [" ".join(line.split()) for line in text.splitlines()]
    for row in (
        "large frames (host memory) ucx, tried with 1.00 MiB",
        "not cma another host",
        "encrypted no",
        "connect 12.0 ms",
        "round trip 48 us",
        "same versions dask 1",
        "other python 3.11 here, 3.12 there",
        "other lz4 4 here, none there",
    ):
        assert row in rows


@pytest.mark.parametrize(
    ("trials", "row"),
    [
        ({}, "large frames (host memory) ucx, agreed on, and not tried with a frame"),
        ({"ucx": "no\x1bway"}, "large frames (host memory) ucx does not work: no?way"),
    ],
)
def test_a_pair_whose_path_has_carried_no_frame(trials, row):
    pair = pair_with(trials=trials, refused={"stream": "ucx is better"})
    rows = [" ".join(line.split()) for line in render_pair(pair, 100).splitlines()]
    assert row in rows
    assert ("not stream ucx is better" in rows) is not bool(trials)


def test_no_frame_of_a_gpu_is_tried():
    pair = pair_with(paths={"host": "ucx", "cuda": "ucx"})
    assert "(cuda memory)  ucx, agreed on, and not tried" in render_pair(pair, 100)
