"""The kept inputs do no harm. `make fuzz` looks for new ones."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.fuzzing import corpus


def replay(*options: str) -> None:
    # In a process of its own: targets change what modules share, such as their random numbers.
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzzing.replay", *options, "--timeout", "250"],
        cwd=corpus.ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.resident
@pytest.mark.timeout(300)
def test_kept_inputs_cost_little_and_leave_nothing():
    replay("--leaks")


@pytest.mark.timeout(300)
def test_kept_inputs_raise_only_errors_of_ours():
    """The same without measurements, for the sanitizers."""
    replay("--bare")


def test_an_archive_gives_back_what_was_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "KEPT", tmp_path)
    monkeypatch.setattr(corpus, "FAULTS", tmp_path / "faults")
    inputs = [b"", b"one", b"\0" * 100]
    nbytes = corpus.keep("some", [*inputs, b"one"])
    corpus.FAULTS.mkdir()
    (corpus.FAULTS / "some-stall").write_bytes(b"slow")
    assert sorted(corpus.kept("some")) == sorted([*inputs, b"slow"])
    assert corpus.kept("other") == []
    before = (tmp_path / "some.zip").read_bytes()
    assert corpus.keep("some", reversed(inputs)) == nbytes
    assert (tmp_path / "some.zip").read_bytes() == before
