"""The network card that a process uses by libfabric."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dask_fabric.errors import UnavailableError
from dask_fabric.paths.ofi.domains import Domain, pick

from ..conftest import ofi_libraries, ofi_settings

# Two cards on each of two nodes, one of them listed twice, as some providers do.
CARDS = [Domain("cxi", f"cxi{number}", f"0000:{number:02x}:00.0") for number in (0, 1, 1, 2, 3)]
SOFTWARE = [Domain("tcp", name, "") for name in ("eth0", "lo")]


@pytest.fixture
def host(tree):
    for number in range(4):
        tree.write(f"sys/bus/pci/devices/0000:{number:02x}:00.0/numa_node", number // 2)
        tree.write(f"sys/devices/system/node/node{number // 2}/cpu{number}/online", 1)
    return tree.root


@pytest.mark.parametrize(
    ("cpus", "number", "expected"),
    [
        ({0}, 0, "cxi0"),
        ({0}, 1, "cxi1"),
        ({1}, 2, "cxi0"),
        ({2, 3}, 0, "cxi2"),
        ({3}, 7, "cxi3"),
        ({0, 3}, 2, "cxi2"),  # of both nodes
        ({99}, 1, "cxi1"),  # nobody knows where that is
    ],
)
def test_a_near_card_is_taken_and_not_by_all_the_same(host, cpus, number, expected):
    assert pick(CARDS, None, cpus, number, host).name == expected


def test_where_no_node_is_known_all_cards_are_near(tmp_path):
    assert {pick(CARDS, None, {0}, number, tmp_path).name for number in range(4)} == {
        "cxi0",
        "cxi1",
        "cxi2",
        "cxi3",
    }


def test_what_is_no_card_is_taken_in_order(host):
    assert {pick(SOFTWARE, None, {3}, number, host).name for number in range(3)} == {"eth0"}


def test_the_named_one_is_taken(host):
    assert pick(CARDS, "cxi3", {0}, 0, host) == CARDS[4]
    assert pick(SOFTWARE, "lo", {0}, 0, host) == SOFTWARE[1]


def test_a_name_that_is_none_is_an_error(host):
    with pytest.raises(UnavailableError, match=r"cxi9.* has only cxi0, cxi1, cxi2, cxi3 here"):
        pick(CARDS, "cxi9", {0}, 0, host)


STARTS = """
import asyncio, json, sys
import dask
from dask_fabric import config
from dask_fabric.paths.ofi import local, worker
with dask.config.set(json.loads(sys.argv[1])):
    settings = config.load().paths.ofi
found, reason = local.local_ofi(settings, insists=True)
print(json.dumps([worker.domain(), reason]))
"""


def domain_in_use(settings: dict) -> list[str]:
    command = [sys.executable, "-c", STARTS, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_libfabric_uses_the_named_one():
    settings = ofi_settings()
    (library,) = [one for one in ofi_libraries() if one.path == settings["fabric.ofi.library"]]
    names = {one.name for one in library.domains_of("tcp")}
    assert names
    for name in names:
        assert domain_in_use({**settings, "fabric.ofi.domain": name}) == [name, ""]
    name, reason = domain_in_use({**settings, "fabric.ofi.domain": "eth99"})
    assert name == "" and "fabric.ofi.domain is eth99" in reason
