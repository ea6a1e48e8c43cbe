"""The page of the dashboard: what it shows, and in a real browser."""

from __future__ import annotations

import logging
import re
import shutil
import urllib.request

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster, Scheduler

from dask_fabric.telemetry.cluster.matrix import gather

pytest.importorskip("bokeh", reason="needs bokeh")

from dask_fabric.telemetry.dashboard import page as fabric_page

pytestmark = [
    pytest.mark.filterwarnings("ignore:Port .* is already in use:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

DATA_COUNT = 1_000_000
SIZES = {"stream": 1 << 10, "cma": 2 << 20, "ucx": 3 << 20}
PRELOAD = {"distributed.scheduler.preload": ["dask_fabric.dashboard"]}


@pytest.fixture(scope="module")
def cluster():
    with (
        dask.config.set(PRELOAD),
        LocalCluster(
            protocol="fabric", n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        left, right = client.scheduler_info(n_workers=-1)["workers"]
        ones = client.submit(np.ones, DATA_COUNT, workers=[left])
        assert client.submit(np.sum, ones, workers=[right]).result() == DATA_COUNT
        yield cluster


def address(cluster, page: str) -> str:
    return f"{cluster.dashboard_link.rpartition('/')[0]}/{page}"


@pytest.mark.parametrize("page", ["fabric", "status"])
def test_the_page_is_served_beside_dasks_own(cluster, page):
    with urllib.request.urlopen(address(cluster, page), timeout=10) as answer:
        text = answer.read().decode()
    assert answer.status == 200
    assert "bokeh" in text
    assert text.count('href="fabric"') == 1


def test_the_page_in_a_browser(cluster, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        pytest.skip("needs chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        errors = []
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(address(cluster, "fabric"))
        table = page.locator("table")
        # Of the last heartbeats, which may be a second old.
        sync_api.expect(table).to_contain_text(re.compile(r"7\.\d+ MiB"), timeout=20_000)
        assert page.title() == "Dask: Fabric"
        assert page.locator("canvas").count() >= 3
        page.screenshot(path=str(tmp_path / "page.png"))
        browser.close()
    assert errors == []


def test_every_path_has_a_color():
    known = ["stream", "shm", "cma", "ucx", "ofi", "lanes"]
    assert list(fabric_page._COLORS) == known
    assert len(set(fabric_page._COLORS.values())) == len(known)


def test_a_pair_shows_what_went_by_each_path():
    rows = [("fabric://h:2", path, size, 0, 0, 0, 0, 0, 0, 0) for path, size in SIZES.items()]
    report = gather([("a", "fabric://h:1", {"peers": rows}), ("b", "fabric://h:2", None)])
    data = fabric_page._cells(report)
    assert data["path"] == ["ucx"]
    assert data["sizes"] == ["3.00 MiB by ucx, 2.00 MiB by cma, 1.00 kiB by stream"]


async def test_a_scheduler_without_a_dashboard_starts(caplog):
    with dask.config.set(PRELOAD), caplog.at_level(logging.WARNING, "dask_fabric"):
        async with Scheduler(
            protocol="fabric",
            host="127.0.0.1",
            port=0,
            dashboard=False,
            dashboard_address="127.0.0.1:0",
        ) as server:
            assert server.address.startswith("fabric://")
    assert "No page /fabric" in caplog.text
