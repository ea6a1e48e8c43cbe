"""What says the same in several files: Pythons, dependencies, addresses, the license."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import yaml
from tests.release.check import pythons

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SOURCE = PROJECT["urls"]["Source"]
WORKFLOWS = ROOT / ".github" / "workflows"
# What pip brings with it, or what conda-build itself must be given.
OF_CONDA = {"python", "pip"}


def requirements(lines: list[str]) -> dict[str, str]:
    """Give bounds by name, as pip and conda both write them."""
    found = (re.fullmatch(r"([a-z0-9-]+)\s*(.*)", line.lower()) for line in lines)
    return {match[1]: match[2] for match in found if match}


@pytest.fixture
def recipe() -> dict:
    text = (ROOT / "docs/conda/meta.yaml").read_text()
    text = re.sub(r"\{%.*%\}", "", text)
    return yaml.safe_load(re.sub(r"\{\{ (.*?) \}\}", lambda m: re.sub(r"\W", "-", m[1]), text))


def test_the_recipe_of_conda_needs_what_the_wheel_needs(recipe):
    given = recipe["requirements"]
    run, host = requirements(given["run"]), requirements(given["host"])
    assert {k: v for k, v in run.items() if k not in OF_CONDA} == requirements(
        PROJECT["dependencies"]
    )
    assert {k: v for k, v in host.items() if k not in OF_CONDA} == requirements(
        PYPROJECT["build-system"]["requires"]
    )


def test_the_recipe_of_conda_describes_this_project(recipe):
    about = recipe["about"]
    assert (recipe["package"]["name"], about["license"]) == (PROJECT["name"], PROJECT["license"])
    assert (about["summary"], about["home"]) == (PROJECT["description"], SOURCE)


def test_the_citation_describes_this_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["authors"] == PROJECT["authors"]
    found = [citation[key] for key in ("title", "abstract", "license", "repository-code")]
    assert found == [PROJECT["name"], PROJECT["description"], PROJECT["license"], SOURCE]


def test_the_same_pythons_are_named_tested_and_built():
    named = pythons((ROOT / "pyproject.toml").read_text())
    workflow = yaml.safe_load((WORKFLOWS / "tests.yml").read_text())
    built = PYPROJECT["tool"]["cibuildwheel"]["build"].split()
    assert workflow["jobs"]["tests"]["strategy"]["matrix"]["python"] == named
    assert built == [f"cp{version.replace('.', '')}-*" for version in named]
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_every_address_of_this_project_is_the_same():
    addresses = {SOURCE, PROJECT["urls"]["Documentation"].rstrip("/")}
    own = re.compile(r"https://(?:github\.com/[\w.-]+|[\w.-]+\.github\.io)/dask-fabric\b")
    files = ["pyproject.toml", "CITATION.cff", "mkdocs.yml", "docs/conda/meta.yaml"]
    pages = [*map(ROOT.joinpath, files), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    found = {page: set(own.findall(page.read_text())) for page in pages}
    assert found[ROOT / "pyproject.toml"] == addresses
    assert set().union(*found.values()) == addresses


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.yml")), ids=lambda path: path.name)
def test_every_job_of_a_workflow_ends_in_bounded_time(path):
    workflow = yaml.safe_load(path.read_text())
    jobs = [job for job in workflow["jobs"].values() if "uses" not in job]
    assert jobs
    assert all(job["timeout-minutes"] <= 120 for job in jobs)
    assert workflow["permissions"] == {"contents": "read"}  # a job asks for more by itself
