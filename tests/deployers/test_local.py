"""A cluster on one host: as its page says."""

import sys

from .conftest import assert_all_over_fabric


def test_a_cluster_of_processes(folder):
    folder.save("howto/deploy/local.md")
    assert_all_over_fabric(folder.run(sys.executable, "cluster.py"), workers=2, path="shm")
