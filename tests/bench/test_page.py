"""The HTML page: its content, and its layout in a real browser without a network."""

from __future__ import annotations

import math
import shutil
from html.parser import HTMLParser

import pytest

pytest.importorskip("bokeh", reason="needs bokeh")

from bokeh.models import LogColorMapper, LogScale
from bokeh.plotting import figure

from dask_fabric.bench.page import page, plots
from dask_fabric.bench.results import Results, Row

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

# Records the places of all texts when a canvas is drawn.
NOTE = """
window.texts = new Map();
const {fillText, clearRect} = CanvasRenderingContext2D.prototype;
CanvasRenderingContext2D.prototype.clearRect = function (...place) {
  texts.set(this.canvas, []);
  return clearRect.apply(this, place);
};
CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
  const size = this.measureText(text), turned = this.getTransform();
  const [a, b] = [
    [x - size.actualBoundingBoxLeft, y - size.actualBoundingBoxAscent],
    [x + size.actualBoundingBoxRight, y + size.actualBoundingBoxDescent],
  ].map(corner => new DOMPoint(...corner).matrixTransform(turned));
  texts.get(this.canvas)?.push({
    text, left: Math.min(a.x, b.x), right: Math.max(a.x, b.x),
    top: Math.min(a.y, b.y), bottom: Math.max(a.y, b.y),
  });
  return fillText.call(this, text, x, y);
};
"""
# Texts that leave their plot, and texts that overlap.
LOOK = """() => {
  const cut = [], overlapping = [], pictures = [...texts.keys()].filter(c => texts.get(c).length);
  let marked = 0;
  const count = root => { for (const element of root.querySelectorAll("*")) {
    marked += element.localName == "b" || element.localName == "i";
    if (element.shadowRoot) count(element.shadowRoot);
  } };
  count(document);
  for (const picture of pictures) for (const a of texts.get(picture)) {
    if (a.left < 0 || a.right > picture.width || a.top < 0 || a.bottom > picture.height)
      cut.push(a.text);
    for (const b of texts.get(picture))
      if (a.text !== b.text  // older versions of bokeh draw a legend twice
          && a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
        overlapping.push(a.text + "|" + b.text);
  }
  return {
    pictures: pictures.length, cut, overlapping, marked,
    texts: pictures.flatMap(picture => texts.get(picture).map(one => one.text)),
    too_wide: document.documentElement.scrollWidth > window.innerWidth,
  };
}"""


def full_results(workers: int = 5) -> Results:
    """Results of every kind, with names that HTML must escape."""
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
    stream = {"tcp": [1.0], "<b>odd</b>": [3.0], "sockets": [2e6]}
    rows += [ping, Row("stream", "messages", "1/s", True, stream)]
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


class Elements(HTMLParser):
    """The elements of a page, and the resources that they would load."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.feed(written)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attributes)


def test_the_page_needs_nothing_else_and_escapes_what_it_is_told():
    written = page.render(full_results())
    found = Elements(written)
    assert not found.attributes & {"src", "href"} and not {*found.tags} & {"link", "b", "i"}
    assert 1_000_000 < len(written) < 2_000_000  # bokeh, once
    assert "import" not in written.partition("<style>")[2].partition("</style>")[0]
    assert "&lt;script&gt;it ended" in written and "slow link: &lt;i&gt;" in written
    assert written.count("data-root-id=") == 6


def test_parts_that_are_missing_are_left_out():
    written = page.render(Results({}, {}, ["tcp"]))
    assert not {*Elements(written).tags} & {"script", "h2", "table"}


@pytest.fixture
def drawn(monkeypatch) -> list[figure]:
    """The plots of `full_results`, in their order."""
    found = []
    monkeypatch.setattr(page, "components", lambda plots: ("", found.extend(plots) or [""] * 9))
    page.render(full_results())
    return found


def glyphs(plot: figure, kind: str) -> list[dict]:
    """The data of all glyphs of a kind, by name."""
    return [
        {"name": one.name, **one.data_source.data}
        for one in plot.renderers
        if type(one.glyph).__name__ == kind
    ]


def test_bandwidth_over_sizes(drawn):
    plot = drawn[3]
    assert isinstance(plot.x_scale, LogScale) and isinstance(plot.y_scale, LogScale)
    lines = {line["name"]: line for line in glyphs(plot, "Line")}
    assert list(lines) == ["tcp", "fabric", "<b>odd</b>", "sockets", "memcpy"]
    assert list(lines["fabric"]["x"])[:2] == [1000, 8000]
    assert lines["fabric"]["y"][0] == pytest.approx((2e-6 + 2e-6 / 0.7) / 2)
    (band, *_) = glyphs(plot, "VArea")
    assert band["y1"][0] < lines["tcp"]["y"][0] < band["y2"][0]
    dashed = [r.name for r in plot.renderers if getattr(r.glyph, "line_dash", []) == [6]]
    assert dashed == ["sockets", "memcpy"]
    assert plot.xaxis[0].major_label_overrides[10**9] == "1 GB"
    assert glyphs(plot, "Scatter")[0]["said"][-1] == "1.21 at 1 GB"


def test_a_histogram_is_broken_where_nothing_was_counted(drawn):
    plot = drawn[4]
    tcp, fabric = glyphs(plot, "Line")
    assert [round(y, 3) for y in tcp["y"] if y == y] == [90, 9.9, 0.1]
    assert len(tcp["y"]) == 53 and sum(y == y for y in fabric["y"]) == 1
    assert isinstance(plot.x_scale, LogScale) and isinstance(plot.y_scale, LogScale)


def test_bars(drawn):
    (bars,) = glyphs(drawn[5], "HBar")
    assert list(bars["name"]) == ["tcp", "<b>odd</b>", "sockets"]
    assert list(bars["value"]) == [1, 3, 2e6] and bars["said"][2] == "2,000,000"
    assert drawn[5].y_range.factors == ["sockets", "<b>odd</b>", "tcp"]  # from below


def test_a_matrix(drawn):
    bandwidth, trips, paths = (glyphs(plot, "Rect")[0] for plot in drawn[:3])
    assert bandwidth["one"][5] == "node-001.cluster" and bandwidth["other"][5] == "node-000.cluster"
    assert bandwidth["hint"][:3] == ["not measured", "not measured", "1"]
    assert math.isnan(bandwidth["value"][0]) and bandwidth["value"][2] == 1
    assert trips["said"][2] == trips["said"][10] == "20"
    assert paths["colour"][2:8:5] == [plots.COLOURS[0], plots.COLOURS[1]]
    assert drawn[0].yaxis[0].major_label_overrides[4] == "node-004.cluster"


def test_bad_cells_are_red_and_good_ones_blue():
    def scale(worst: float, **options) -> LogColorMapper:
        plot = plots.heat_map(["a", "b"], [[None, worst], [100.0, None]], **options)
        return plot.renderers[0].glyph.fill_color.transform

    usual, little = scale(1.0), scale(100.0)
    assert (usual.low, usual.high) == (1, 100)
    assert (usual.palette[0], usual.palette[-1]) == ("#d73027", "#4575b4")
    assert scale(1.0, higher_is_better=False).palette == usual.palette[::-1]
    assert (little.low, little.high) == (50, 200)  # equal values get the same pale colour


def test_what_is_said_stands_in_cells_where_all_of_it_fits():
    for count, fits in ((10, True), (30, False)):
        plot = plots.heat_map(["a"] * count, [[1.23] * count] * count)
        assert bool(glyphs(plot, "Text")) is fits


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this host")
@pytest.mark.parametrize(
    ("workers", "width"),
    [(5, 390), *(pytest.param(count, 1150, marks=pytest.mark.slow) for count in (2, 40))],
)
def test_no_label_is_cut_or_covered_in_a_browser(workers, width, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    file = tmp_path / "page.html"
    file.write_text(page.render(full_results(workers)), encoding="utf-8")
    errors, loaded = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.add_init_script(NOTE)
        tab.on("pageerror", lambda error: errors.append(error))
        tab.on("request", lambda request: loaded.append(request.url))
        tab.goto(file.as_uri())
        tab.wait_for_function("window.Bokeh && Bokeh.documents[0]?.is_idle", timeout=30_000)
        told = tab.evaluate(LOOK)
        browser.close()
    assert errors == [] and loaded == [file.as_uri()]
    assert {"<b>odd</b>", "1 kB", "2,000,000"} <= {*told.pop("texts")}
    assert told == {"pictures": 6, "cut": [], "overlapping": [], "marked": 0, "too_wide": False}
