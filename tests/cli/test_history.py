"""``dask fabric history`` as a user types it."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sqlite3
import subprocess
import sys

import dask
import pytest
from click.testing import CliRunner
from tests.telemetry.history.records import START, record

from dask_fabric.cli.main import fabric
from dask_fabric.telemetry.history.file import Writer


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "history.sqlite"
    writer = Writer(path, 16 << 20)
    writer.write(record("Scheduler-a", ended=START + 20))
    writer.write(record("Scheduler-b", seen=START + 40))
    return path


def run(*arguments):
    return CliRunner().invoke(fabric, ["history", *map(str, arguments)])


def lines(result) -> list[str]:
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


@pytest.mark.parametrize("command", [[], ["list"]])
def test_jobs_are_listed(path, command):
    head, first, second = lines(run("--file", path, *command))
    assert head.split()[:4] == ["job", "start", "lasted", "state"]
    assert "ended" in first and "1.00 MiB cma, 5 B stream" in first
    assert "lost" in second and "40.00 s" in second


def test_the_file_may_be_named_after_the_command(path):
    assert lines(run("show", 1, "--file", path)) == lines(run("--file", path, "show", 1))
    assert lines(run("list", "--file", path)) == lines(run("--file", path, "list"))


def test_the_file_of_the_configuration(path):
    with dask.config.set({"fabric.history.file": str(path)}):
        assert len(lines(run())) == 3
    with dask.config.set({"fabric.history.file": None}):
        result = run()
    assert result.exit_code == 1 and "fabric.history.file" in result.stderr


def test_one_job_is_shown(path):
    text = "\n".join(lines(run("--file", path, "show", 1)))
    for part in ("Scheduler-a", "1, ended", "2 at once, 3 in all", "0.95 MiB/s", "fabric://h:2"):
        assert part in text
    (told,) = lines(run("--file", path, "show", 2, "--json"))
    assert json.loads(told)["state"] == "lost"
    assert json.loads(told)["summary"]["paths"][0]["bytes_sent"] == 1 << 20


def test_two_jobs_are_compared(path):
    rows = {
        line[:24].strip(): line[24:].split() for line in lines(run("--file", path, "compare", 1, 2))
    }
    assert rows["lasted"] == ["20.00", "s", "40.00", "s", "2.00"]
    assert rows["cma bytes sent"][-1] == "1.00"


def test_an_export_tells_the_same(path, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    files = [tmp_path / "jobs.csv", tmp_path / "jobs.parquet"]
    assert run("--file", path, "export", "--csv", files[0], "--parquet", files[1]).exit_code == 0
    with open(files[0], newline="") as file:
        texts = list(csv.DictReader(file))
    rows = parquet.read_table(files[1]).to_pylist()
    assert [(row["job"], row["path"]) for row in rows] == [
        (1, "cma"),
        (1, "stream"),
        (2, "cma"),
        (2, "stream"),
    ]
    assert rows[0]["end"].timestamp() == START + 20 and rows[2]["end"] is None
    assert json.loads(rows[0]["slow_links"])[0]["peer"] == "fabric://h:2"
    for text, row in zip(texts, rows, strict=True):
        assert text == {key: "" if value is None else str(value) for key, value in row.items()}


def test_an_export_without_pyarrow_says_what_to_do(path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run("--file", path, "export", "--parquet", tmp_path / "jobs.parquet")
    assert result.exit_code == 1 and "pip install pyarrow" in result.stderr
    assert run("--file", path, "export", "--csv", tmp_path / "jobs.csv").exit_code == 0


def test_what_cannot_be_done_is_said(path, tmp_path, monkeypatch):
    before = path.read_bytes()
    for arguments, status, text in (
        (["show", 9], 1, "there is no job 9"),
        (["export"], 2, "--parquet FILE or --csv FILE"),
        (["export", "--csv", "a", "--parquet", "a"], 2, "both with different files"),
        (["export", "--csv", path], 1, "is the history itself"),
        (["export", "--csv", f"{path}-wal"], 1, "is the history itself"),
        (["export", "--csv", tmp_path / "none" / "x"], 1, "cannot write"),
    ):
        result = run("--file", path, *arguments)
        assert result.exit_code == status and text in result.stderr
    other = tmp_path / "other"
    other.write_text("something else\n" * 20)
    result = run("--file", other)
    assert result.exit_code == 1 and "is not a history of dask-fabric" in result.stderr
    assert path.read_bytes() == before
    for nothing in (tmp_path / "none", tmp_path / "empty", "~nobody-of-this-name/x"):
        (tmp_path / "empty").touch()
        result = run("--file", nothing)
        assert result.exit_code == 1 and result.stderr.startswith("Error: ")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run("--file", path)
    assert result.exit_code == 1 and "lacks SQLite" in result.stderr


def test_an_export_of_odd_names(path, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    odd = '=1+1,"\u2603\n;'
    summary = dataclasses.replace(record().summary, scheduler=odd)
    Writer(path, 16 << 20).write(dataclasses.replace(record("odd"), summary=summary))
    with sqlite3.connect(path) as connection:  # half a character
        connection.execute("UPDATE jobs SET summary = replace(summary, 'cma', '\\ud800')")
    connection.close()
    files = [tmp_path / "jobs.csv", tmp_path / "jobs.parquet"]
    command = [sys.executable, "-m", "dask", "fabric", "history", "--file", str(path), "export"]
    command += ["--csv", str(files[0]), "--parquet", str(files[1])]
    variables = {**os.environ, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run(command, env=variables, check=True, timeout=60)
    with open(files[0], newline="", encoding="utf-8") as file:
        texts = list(csv.DictReader(file))
    rows = parquet.read_table(files[1]).to_pylist()
    for found in (texts, rows):
        assert (found[-1]["scheduler"], found[-2]["path"]) == (odd, "?")


def test_a_damaged_job_is_named_beside_the_others(path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE jobs SET summary = '\x1b[2J' WHERE number = 1")
    connection.close()
    result = run("--file", path)
    assert len(lines(result)) == 2
    assert "job 1 is damaged" in result.stderr and "\x1b" not in result.output
