"""Every code block of README and the documentation does what it says.

Programs run as saved files, and snippets in a session with a cluster. Commands of Dask are parsed
by Dask's own command line, which refuses unknown commands, options and values. What cannot run here
is named in `NOT_RUN`, with the reason.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import click
import dask
import distributed
import jsonschema
import pytest
import yaml
from dask.cli import cli
from distributed import Client, LocalCluster
from distributed.security import Security
from tests.conftest import LOCAL_CLUSTER

import dask_fabric
from dask_fabric import config

from .blocks import ROOT, Block, blocks, commands, inline_commands

BLOCKS = list(blocks())
SCHEMAS = {
    name: yaml.safe_load((Path(module.__file__).parent / f"{name}-schema.yaml").read_text())
    for name, module in (("dask_fabric", dask_fabric), ("distributed", distributed))
}
# As Dask's program makes it, with the commands of other packages.
COMMANDS = click.Group("dask", commands=dict(cli.commands))
for entry in entry_points(group="dask_cli"):
    COMMANDS.add_command(entry.load(), entry.name)
# Not by `make --dry-run`, which runs the lines that call make.
TARGETS = set(" ".join(re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(), re.M)).split())
# Of others, and so not checked further than their names.
PROGRAMS = {"mpirun", "pip", "module", "srun", "scp", "compute-sanitizer", "exit", "source"}
OTHER_VARIABLES = {"CMAKE_C_COMPILER_LAUNCHER", "FILE", "DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME"}
SAVED = ("program.py", "check.py")  # which the pages have the reader save
FILES = ("before.json", "after.json", "ca.pem", "cert.pem", "key.pem", "$FILE")  # of commands
NOT_RUN = {
    "docs/gpu-workers.md 2": "it needs GPUs",
    "docs/gpu-workers.md 3": "it needs GPUs",
    "docs/gpu-workers.md 4": "it needs GPUs, and dask-cuda",
    "docs/RELEASING.md 1": "it publishes",
    "docs/RELEASING.md 2": "it installs another Debian",
    "docs/RELEASING.md 3": "it installs another Debian",
    "docs/RELEASING.md 4": "it needs conda",
}
# `py` is of the tutorial, a notebook that `make ecosystem` runs.
LANGUAGES = {"python", "py", "sh", "yaml", "toml", "text", "mermaid"}


def of(language: str, *, guarded: bool | None = None) -> list:
    """The blocks of a language, as parameters; *guarded* chooses programs or snippets."""
    found = [block for block in BLOCKS if block.language == language]
    if guarded is not None:
        found = [block for block in found if ("__main__" in block.text) == guarded]
    found = [block for block in found if str(block) not in NOT_RUN]
    if language != "sh":  # `make deployers` runs these, on servers of their own
        found = [block for block in found if not block.page.startswith("docs/howto/deploy")]
    return [pytest.param(block, id=str(block)) for block in found]


def test_what_is_not_run_is_there():
    """A name in the list fits a block, so that the list cannot outlive its reason."""
    assert NOT_RUN.keys() <= {str(block) for block in BLOCKS}


def test_every_language_has_a_check():
    assert {block.language for block in BLOCKS} <= LANGUAGES


def test_programs_that_start_workers_can_be_saved():
    """Without the guard, workers that import the file would start workers."""
    for block in BLOCKS:
        starts = "LocalCluster(" in block.text or "LocalFabricCluster(" in block.text
        assert block.language != "python" or not starts or "__main__" in block.text, block


@pytest.mark.parametrize("block", of("python", guarded=True))
def test_programs_run_as_saved_files(block: Block, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(block.text)
    environment = {**os.environ, "DASK_DISTRIBUTED__DASHBOARD__LINK": ""}
    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=4, threads_per_worker=1, processes=False, protocol="fabric", **LOCAL_CLUSTER
    ) as cluster:
        yield cluster


@pytest.fixture
def session(cluster, temporary_security, tmp_path, monkeypatch):
    """What a snippet finds: a client, the files that its page names, and the names imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FILE", "scheduler.json")
    (tmp_path / "scheduler.json").write_text(json.dumps({"address": cluster.scheduler_address}))
    for name, text in (
        ("ca.pem", temporary_security.tls_ca_file),
        ("cert.pem", temporary_security.tls_client_cert),
        ("key.pem", temporary_security.tls_client_key),
    ):
        (tmp_path / name).write_text(text)
    with Client(cluster) as client:
        names = {
            "client": client,
            "Client": Client,
            "Security": Security,
            "dask_fabric": dask_fabric,
        }
        yield names
        if names["client"] is not client:
            names["client"].close()


@pytest.fixture
def encrypted(temporary_security):
    """The address of a cluster that wants certificates."""
    with LocalCluster(
        n_workers=0, protocol="fabric+tls", security=temporary_security, **LOCAL_CLUSTER
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.parametrize("block", of("python", guarded=False))
def test_snippets_run_in_a_session(block: Block, session, encrypted):
    text = block.text.replace("fabric+tls://host:8786", encrypted)
    exec(compile(text, str(block), "exec"), session)


def parse(command: click.Command, words: list[str], context: click.Context | None = None) -> None:
    """Have a command of Dask parse its words, down to the last subcommand, without running it."""
    name, *rest = words
    try:
        made = command.make_context(name, rest, parent=context)
    except click.exceptions.Exit:  # as --version and --help end
        return
    if isinstance(command, click.Group):
        left = [*made._protected_args, *made.args]
        if left:
            subcommand = command.get_command(made, left[0])
            assert subcommand is not None, f"no command {' '.join(words)}"
            parse(subcommand, left, made)


def dask_words(words: list[str]) -> list[str]:
    """The part of a command from ``dask`` on, also behind srun and its like; else nothing."""
    return words[words.index("dask") :] if "dask" in words else []


@pytest.mark.parametrize("block", of("sh"))
def test_commands_are_known(block: Block, tmp_path, monkeypatch):
    run_nothing(block.text, tmp_path, monkeypatch)


def run_nothing(script: str, tmp_path, monkeypatch) -> None:
    """Have all commands of a script be known: programs, commands and options, files and targets.

    The options of other programs, such as srun and pip, are not looked at.
    """
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).touch()
    for words in commands(script):
        if words[:2] == ["dask", "cuda"]:
            continue  # of dask-cuda, which needs CUDA to be installed
        if dask_words(words):
            parse(COMMANDS, dask_words(words))
        elif words[0] == "export":
            known_variable(words[1])
        elif words[0] == "make":
            targets = {word for word in words[1:] if "=" not in word and "/" not in word}
            assert targets <= TARGETS, words
        elif words[0].endswith("python") and not words[1].startswith("-"):
            assert (ROOT / words[1]).exists() or words[1] in SAVED, words
        elif "=" in words[0]:
            assert words[0].partition("=")[0] in OTHER_VARIABLES, words
        elif "/" in words[0] and not words[0].startswith(".venv"):
            assert os.access(ROOT / words[0], os.X_OK), words
        else:
            assert words[0] in PROGRAMS or words[0].endswith("python"), words


@pytest.mark.parametrize(("page", "text"), sorted(set(inline_commands())))
def test_commands_in_the_prose_are_known(page, text, tmp_path, monkeypatch):
    run_nothing(text, tmp_path, monkeypatch)


def known_variable(assignment: str) -> None:
    """Have a variable of ours match the schema, in the place where Dask puts it."""
    name, value = assignment.split("=", 1)
    if name.startswith("DASK_FABRIC__"):
        known_settings(dask.config.collect_env({name: value}))
    else:
        assert name in OTHER_VARIABLES, assignment


def known_settings(settings: dict) -> None:
    """Have settings match the schemas of their sections, names with hyphens."""
    assert settings.keys() <= {"fabric", "distributed", "logging", "labextension"}
    for schema in SCHEMAS.values():
        jsonschema.validate(hyphenated(settings), schema)


def hyphenated(settings: object) -> object:
    if not isinstance(settings, dict):
        return settings
    return {name.replace("_", "-"): hyphenated(inner) for name, inner in settings.items()}


@pytest.mark.parametrize("block", of("yaml"))
def test_settings_are_known(block: Block):
    settings = yaml.safe_load(block.text)
    known_settings(settings)
    with dask.config.set(settings):
        config.load()


@pytest.mark.parametrize("block", of("toml"))
def test_files_of_projects_are_toml(block: Block):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    assert tomllib.loads(block.text)
