"""The page: what is in it, and how a real browser lays it out, without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dask_fabric.bench.page import page, svg
from dask_fabric.bench.results import Results, Row

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

# Texts that leave their picture, and labels of one axis that lie on each other.
LOOK = """<script>
const cut = [], overlapping = [];
for (const picture of document.querySelectorAll("svg")) {
  const frame = picture.getBoundingClientRect();
  const boxes = [...picture.querySelectorAll("text")].map(t => [t, t.getBoundingClientRect()]);
  for (const [text, box] of boxes)
    if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
        || box.bottom > frame.bottom + 1) cut.push(text.textContent);
  for (const [one, a] of boxes) for (const [other, b] of boxes)
    if (one !== other && a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3
        && b.top < a.bottom - 3) overlapping.push(one.textContent + "|" + other.textContent);
}
document.body.innerHTML = "";
document.body.append("LOOK" + JSON.stringify(
  {cut, overlapping, loaded: performance.getEntriesByType("resource").length}) + "END");
</script>"""


def full_results(workers: int = 5) -> Results:
    """Something of everything, with names that HTML must not take for its own."""
    protocols = ["tcp", "fabric", "<b>odd</b>"]
    rows = []
    for size in (1000, 8000, 64_000, 10**6, 10**7, 10**8, 10**9):
        row = Row("bandwidth", f"numpy {size}, acknowledged", "GB/s", parameters={"nbytes": size})
        for factor, column in enumerate([*protocols, "sockets", "memcpy"], 1):
            row.rounds[column] = [factor * size / 1e9, factor * size / 0.7e9]
        rows.append(row)
    ping = Row("pingpong", "round trip, p50", "us", False, {"tcp": [200.0], "fabric": [50.0]})
    ping.histograms = {"tcp": {"140": 900, "141": 99, "190": 1}, "fabric": {"124": 5}}
    ping.problems["<b>odd</b>"] = "<script>it ended</script>"
    rows += [ping, Row("stream", "messages", "1/s", True, {"tcp": [1.0], "sockets": [2e6]})]
    names = [f"node-{number:03}.cluster" for number in range(workers)]
    links = [
        {"one": a, "other": b, "path": "ucx" if i % 2 else "tcp", "refused": {}, "error": "",
         "round_trip_us": 20.0 + i, "there_gbs": 1.0 + i, "back_gbs": 0.01}
        for i, a in enumerate(names) for b in names[i + 1 :]
    ]  # fmt: skip
    matrix = {
        "protocol": "fabric",
        "workers": [{"name": name} for name in names],
        "links": links[1:],
        "findings": ["slow link: <i>"],
    }
    return Results({"cpu": "x & y"}, {}, protocols, rows, matrix, ["noise <"])


def test_the_page_needs_nothing_else_and_escapes_what_it_is_told():
    written = page.render(full_results())
    assert not re.search(r"(src|href|url|import)\s*[=(]", written)
    assert "<script" not in written and "<b>" not in written and "<i>" not in written
    assert "&lt;script&gt;it ended" in written and "slow link: &lt;i&gt;" in written
    pictures = re.findall(r"<svg.*?</svg>", written)
    assert len(pictures) == 6
    for picture in pictures:
        ElementTree.fromstring(picture)  # well-formed
    assert written.count("sockets</text>") == 2


def test_parts_that_are_missing_are_left_out():
    written = page.render(Results({}, {}, ["tcp"]))
    assert "<svg" not in written and "<h2>" not in written


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.9, 7], ["0.5", "1", "2", "5", "10"]),
        ([3], ["2", "5"]),
        ([1], ["1", "2"]),
        ([0.02, 150], ["0.01", "0.1", "1", "10", "100", "1k"]),
        ([], ["1", "2"]),
    ],
)
def test_ticks_of_a_logarithmic_axis(values, labels):
    axis = svg.log_axis("x", values, svg.short)
    assert list(axis.labels) == labels
    assert all(0 <= axis.part(value) <= 1 for value in values)


def test_labels():
    assert [svg.short(v) for v in (0.5, 1000, 12_345, 2e6)] == ["0.5", "1k", "12.3k", "2M"]
    assert [svg.size_label(v) for v in (10, 1000, 1e9)] == ["10 B", "1 kB", "1 GB"]


def test_bad_cells_are_red_and_good_ones_blue():
    def colours(**options) -> list[str]:
        drawn = svg.heat_map("x", ["a", "b"], [[None, 1.0], [100.0, None]], **options)
        return re.findall(r'fill="(#\w+)"', drawn)

    assert colours() == ["#e8e8e8", "#d7191c", "#2c7bb6", "#e8e8e8"]
    assert colours(higher_is_better=False) == ["#e8e8e8", "#2c7bb6", "#d7191c", "#e8e8e8"]


def browse(file: Path, *options: str) -> str:
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1150,3000"]
    return subprocess.run(
        [*command, f"--user-data-dir={file.parent / 'profile'}", *options, file.as_uri()],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this host")
@pytest.mark.parametrize("workers", [2, 5, 40])
def test_no_label_is_cut_or_covered_in_a_browser(workers, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page.render(full_results(workers)).replace("</body>", f"{LOOK}</body>"))
    found = re.search(r"LOOK(\{.*\})END", browse(file, "--dump-dom"))
    told = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">"))
    assert told == {"cut": [], "overlapping": [], "loaded": 0}
    file.write_text(page.render(full_results(workers)))
    browse(file, f"--screenshot={tmp_path / 'page.png'}")
    assert (tmp_path / "page.png").stat().st_size > 20_000
