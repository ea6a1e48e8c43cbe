"""The script behind ``make sanitize``: what counts as a report."""

from __future__ import annotations

import pytest
from tests import builds, sanitize

REPORTS = {
    "address": "==7==ERROR: AddressSanitizer: heap-use-after-free on address 0x1 at pc 0x2",
    "undefined": "framing.c:3:4: runtime error: left shift of 1 by 64 places cannot be represented",
    "thread": "WARNING: ThreadSanitizer: data race (pid=7)",
}


@pytest.mark.parametrize("text", REPORTS.values(), ids=REPORTS)
def test_a_report_of_any_process_is_found(tmp_path, text):
    (tmp_path / "report.12").write_text("hello\n")
    (tmp_path / "report.13").write_text(f"====\n{text}\n    #0 somewhere\n")
    (found,) = sanitize.reports(tmp_path)
    assert found.startswith(f"{tmp_path}/report.13: ")
    assert text.partition(": ")[2] in found


def test_no_report(tmp_path):
    (tmp_path / "report.12").write_text("==12==WARNING: only about the stack\n")
    assert sanitize.reports(tmp_path) == []


def test_what_is_run():
    assert builds.suites(["tests/wire", "-x"]) == ["tests/wire", "-x"]
    assert "tests/engine" in builds.suites([])
    assert all((builds.ROOT / name).is_dir() for name in builds.suites([]))
