"""The script behind ``make coverage``: from lines of C to lines of Cython."""

from __future__ import annotations

import json
from pathlib import Path

from tests import covered

C = """\
/* "dask_fabric/wire/x.pyx":3
 *
 * cdef int f(int a) noexcept:             # <<<<<<<<<<<<<<
 */

static int f(int a) {

  /* "dask_fabric/wire/x.pyx":4
 *     if a:             # <<<<<<<<<<<<<<
 */
  if (a) {

    /* "dask_fabric/wire/x.pyx":5
 *         return 1             # <<<<<<<<<<<<<<
 */
    return 1;
  }
  __pyx_L3:;

  /* "dask_fabric/y.pxd":9
 *     return 0             # <<<<<<<<<<<<<<
 */
  r = 0;
  return r;

  /* function exit code */
  cleanup();
}

/* #### Code section: module_exttypes ### */
static int nobody(void) {
""".splitlines()


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(C, 1) if text in line)


def test_lines_of_c_belong_to_the_line_named_above_them():
    found = covered.places(C)
    assert found[line_of("static int f")] == ("dask_fabric/wire/x.pyx", 3)
    assert found[line_of("if (a)")] == ("dask_fabric/wire/x.pyx", 4)
    assert found[line_of("return 1;")] == ("dask_fabric/wire/x.pyx", 5)
    assert found[line_of("return r;")] == ("dask_fabric/y.pxd", 9)


def test_labels_comments_and_what_cython_adds_belong_to_nobody():
    found = covered.places(C)
    for text in ("__pyx_L3", "<<<", "cleanup", "nobody"):
        assert line_of(text) not in found


def test_a_line_has_run_where_any_of_its_c_has():
    counts = {line_of("if (a)"): 2, line_of("return 1;"): 0, line_of("r = 0;"): 0}
    counts |= {line_of("return r;"): 2, line_of("cleanup"): 7}
    assert covered.counted(C, counts) == {
        "dask_fabric/wire/x.pyx": {4: 2, 5: 0},
        "dask_fabric/y.pxd": {9: 2},
    }


def test_what_is_left_out_is_named_unless_it_has_an_excuse(monkeypatch, tmp_path):
    source = tmp_path / "cython/dask_fabric/wire/x.pyx"
    source.parent.mkdir(parents=True)
    source.write_text("one()\ntwo()\nthree()  # untested: two ends it\nfour()  # untested:\n")
    monkeypatch.setattr(covered, "ROOT", tmp_path)
    found = {"dask_fabric/wire/x.pyx": {1: 5, 2: 0, 3: 0, 4: 0}}
    assert covered.left_out(found, ["wire"]) == [
        "dask_fabric/wire/x.pyx:2: two()",
        "dask_fabric/wire/x.pyx:4: four()  # untested:",
    ]
    assert covered.left_out(found, ["codec"]) == []
    wire = covered.summary(found)["wire"]
    assert wire == {"lines": 3, "run": 1, "percent": 33.3}


def test_the_docs_say_what_was_measured_last():
    packages = json.loads(covered.FIGURES.read_text())
    assert list(packages) == list(covered.PACKAGES)
    text = Path(covered.PAGE).read_text()
    assert covered.with_table(text, packages) == text


def test_the_table_of_the_docs_is_written_anew():
    page = "before\n<!-- coverage -->\nold\n<!-- end of coverage -->\nafter\n"
    packages = {"wire": {"lines": 1234, "run": 1233, "percent": 99.9}}
    assert covered.with_table(page, packages) == (
        "before\n<!-- coverage -->\n| package | lines | run | percent |\n"
        "| --- | --- | --- | --- |\n| wire | 1,234 | 1,233 | 99.9 |\n"
        "<!-- end of coverage -->\nafter\n"
    )
