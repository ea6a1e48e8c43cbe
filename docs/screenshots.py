"""Pictures for the documentation, in docs/images: ``make screenshots``.

The page ``/fabric`` of a cluster that works, and the page of a benchmark whose figures are in the
repository. It needs Chromium, and takes half a minute.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import dask
import dask.array as da
from distributed import Client, LocalCluster
from playwright.sync_api import Page, sync_playwright

from dask_fabric.bench.page.page import render
from dask_fabric.bench.results import read

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs/images"
RESULTS = ROOT / "benchmarks/results/comm-1.json"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WORK_SECONDS = 12.0  # for bandwidths over a few heartbeats
PATIENCE_MS = 60_000


def take_dashboard(page: Page) -> None:
    """Take the page of a cluster while its workers exchange blocks of arrays."""
    preload = {"distributed.scheduler.preload": ["dask_fabric.dashboard"]}
    with (
        dask.config.set(preload),
        LocalCluster(n_workers=4, protocol="fabric", dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        page.set_viewport_size({"width": 1200, "height": 780})
        page.goto(client.dashboard_link.replace("/status", "/fabric"), timeout=PATIENCE_MS)
        begin = time.monotonic()
        while time.monotonic() - begin < WORK_SECONDS:
            x = da.random.random((4000, 4000), chunks=(500, 500))
            (x + x.T).sum().compute()
            page.wait_for_timeout(100)  # lets the page take the new figures
        page.screenshot(path=IMAGES / "dashboard.png")


def take_benchmark(page: Page) -> None:
    """Take the first screen of the page of a benchmark."""
    page.set_viewport_size({"width": 1200, "height": 1000})
    page.set_content(render(read(RESULTS)), timeout=PATIENCE_MS)
    page.wait_for_selector(".bk-Figure", timeout=PATIENCE_MS)
    page.wait_for_timeout(1000)  # plots are drawn after their elements are there
    page.screenshot(path=IMAGES / "benchmark.png")


def main() -> None:
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        sys.exit("Chromium is needed, and was not found")
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page()
        take_benchmark(page)
        take_dashboard(page)
        browser.close()


if __name__ == "__main__":
    main()
