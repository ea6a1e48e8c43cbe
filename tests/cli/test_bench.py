"""The commands of the benchmark suite as a user types them."""

from __future__ import annotations

import json
import sys
from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from dask_fabric.bench.suite import ALL
from dask_fabric.cli.bench import _ABOUT
from dask_fabric.cli.main import fabric

SHORT = ("--rounds", "2", "--round-seconds", "0.02", "--sleepy", "--no-floor")


def run(*arguments: str):
    return CliRunner().invoke(fabric, ["bench", *arguments], prog_name="dask fabric")


def test_help_names_all_scenarios():
    shown = run("--help").output
    assert all(f"\n    {name} " in shown for name in _ABOUT)
    assert "bench compare A.json B.json" in shown
    assert "--fail-on-worse" in run("compare", "--help").output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nothing"], "'nothing' is not one of pingpong"),
        (["--protocols", "tcp,tcp"], "a value occurs twice"),
        (["--sizes", "1kB,many"], "--sizes"),
        (["--sizes", "0"], "0 is not a size"),
        (["--ways", "two"], "two is neither one nor both"),
        (["--comms", "-1"], "not a number from 1"),
        (["--rounds", "0"], "--rounds"),
        (["--ucxx", "/nowhere/python"], "does not exist"),
        (["--scheduler", "a", "--scheduler-file", __file__], "give --scheduler or"),
        (["--scheduler", "a", "--protocols", "tcp"], "--protocols: leave it out"),
        (["--scheduler", "a", "--ucx-library", "b"], "--ucx-library: leave it out"),
        (["--between", "a"], "two workers, separated by a comma"),
        (["--matrix-size", "x"], "--matrix-size"),
        (["--type", "tpu"], "--type"),
        (["--quick", "--rounds", "7"], "--rounds: leave it out"),
        (["--quick", "--round-seconds", "1"], "--round-seconds: leave it out"),
        (["compare", "a"], "Missing argument 'B.json'"),
    ],
)
def test_wrong_options(arguments, complaint):
    done = run(*arguments)
    assert done.exit_code == 2
    assert complaint in done.output


def test_no_protocol_works():
    done = run("stream", "--protocols", "none", *SHORT)
    assert done.exit_code == 1
    assert "Error: left out: none://: ValueError: unknown address scheme" in done.stderr


@pytest.mark.slow
def test_a_run_and_its_comparison(tmp_path):
    files = [str(tmp_path / name) for name in "ab"]
    done = run("stream", *SHORT, "--json", files[0])
    assert done.exit_code == 0
    assert done.stderr == f"written: {files[0]}\n"  # no progress in a pipe
    assert "small messages one way" in done.stdout
    content = json.loads((tmp_path / "a").read_text())
    for values in content["rows"][0]["rounds"].values():
        values[:] = [value * 10**6 for value in values]
    (tmp_path / "b").write_text(json.dumps(content))
    assert run("compare", *files, "--fail-on-worse").exit_code == 0
    done = run("compare", *reversed(files), "--fail-on-worse", "--markdown")
    assert done.exit_code == 1
    assert "2 worse" in done.stdout and done.stdout.startswith("| scenario |")
    assert run("compare", *reversed(files)).exit_code == 0


def test_all_scenarios_are_explained():
    assert set(_ABOUT) == set(ALL)


def test_workloads_and_a_page(tmp_path):
    page = tmp_path / "page.html"
    small = ("--size", "100", "--chunk-size", "50", "--quick", "--runs", "1")
    done = run("transpose-sum", *small, "--protocols", "tcp", "--html", str(page), "--sleepy")
    assert done.exit_code == 0, done.output
    assert "(x + x.T).sum(), 100 x 100" in done.stdout
    assert "data-root-id" in page.read_text()


def test_plots_without_bokeh_are_refused_before_it_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("dask_fabric.bench.suite.run", Mock(side_effect=AssertionError))
    monkeypatch.delitem(sys.modules, "dask_fabric.bench.page.page", raising=False)
    monkeypatch.setitem(sys.modules, "bokeh.embed", None)
    done = run("stream", *SHORT, "--html", str(tmp_path / "page.html"))
    assert done.exit_code == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: --html needs bokeh: pip install 'dask-fabric[bench]'")


@pytest.fixture
def answers(monkeypatch):
    """A function that sets the answers of the workloads' program, without a cluster."""

    def answers(*told: object) -> None:
        program = Mock(**{"return_value.read.side_effect": told})
        monkeypatch.setattr("dask_fabric.bench.workloads.Program", program)

    return answers


def test_a_workload_that_fails_makes_the_exit_status_1(answers):
    small = ("--size", "10", "--chunk-size", "0")
    assert run("rechunk", *small).exit_code == 2
    answers("tcp", {"problem": "ModuleNotFoundError: No module named 'cupy'"}, {"values": [9000.0]})
    arguments = ("transpose-sum", "tasks", "--size", "10", "--type", "gpu", "--protocols", "tcp")
    done = run(*arguments, "--quick", "--sleepy", "--runs", "1")
    assert done.exit_code == 1
    (failed,) = [line for line in done.stdout.splitlines() if line.startswith("(x + x.T).sum()")][
        :1
    ]
    assert failed.split()[-1] == "failed" and "4,000 tiny tasks" in done.stdout


def test_no_scheduler_there(monkeypatch):
    monkeypatch.setattr("dask_fabric.bench.cluster._CONNECT_SECONDS", 1)
    done = run("matrix", "--scheduler", "tcp://127.0.0.1:1")
    assert done.exit_code == 1 and "Error: no scheduler at tcp://127.0.0.1:1" in done.stderr


def test_json_on_standard_output_needs_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    done = run("stream", *SHORT, "--protocols", "tcp", "--json", "-")
    assert done.exit_code == 0
    (row,) = json.loads(done.stdout)["rows"]
    assert len(row["rounds"]["tcp"]) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.json").touch()
    done = run("stream", *SHORT, "--protocols", "tcp", "--json", "old.json")
    assert done.exit_code == 2 and "'old.json' is not writable" in done.stderr


def test_files_that_cannot_be_used(tmp_path):
    done = run("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert done.exit_code == 1 and "cannot read" in done.stderr
    done = run("stream", *SHORT, "--protocols", "tcp", "--json", str(tmp_path / "no" / "a"))
    assert done.exit_code == 1 and "cannot write" in done.stderr


def test_what_failed_is_told_where_nothing_is_left(answers):
    answers("tcp", {"problem": "OSError: no"})
    done = run("transpose-sum", "--protocols", "tcp", "--quick", "--sleepy")
    assert done.exit_code == 1
    assert "(x + x.T).sum(), 8000 x 8000 in chunks of 1000: tcp: OSError: no" in done.stderr
