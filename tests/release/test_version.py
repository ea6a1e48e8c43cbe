"""The version that a build has, in each kind of source tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("pyproject.toml", "README.md", "LICENSE", "cython/CMakeLists.txt")
LIMIT_SECONDS = 60
# Not the git configuration of whoever runs the tests, and no repository around a temporary folder.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
}
BUILD = "import sys; from scikit_build_core import build; print(build.{}(sys.argv[1]))"


def run(folder: Path, *command: object) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def version(tree: Path) -> str:
    """Ask the build backend, as pip does."""
    made = tree.parent / "metadata"
    backend = BUILD.format("prepare_metadata_for_build_wheel")
    name = run(tree, sys.executable, "-c", backend, made).splitlines()[-1]
    return re.search(r"^Version: (.+)$", (made / name / "METADATA").read_text(), re.M)[1]


def commit(tree: Path) -> str:
    """Commit a change, and return its hash."""
    with (tree / "README.md").open("a") as file:
        file.write("\nMore.\n")
    run(tree, "git", "add", "--all")
    run(tree, "git", "commit", "--quiet", "--message", "A change")
    return run(tree, "git", "rev-parse", "HEAD")


@pytest.fixture
def tree(tmp_path) -> Path:
    folder = tmp_path / "tree"
    for name in NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def repository(tree) -> Path:
    run(tree, "git", "init", "--quiet")
    commit(tree)
    return tree


def is_of(version: str, base: str, commit: str) -> bool:
    """Whether a version is that of a commit, whose hash may be shortened."""
    start, _, own = version.partition("+g")
    return start == base and len(own) >= 7 and commit.startswith(own)


def test_a_tag_is_the_version(repository):
    run(repository, "git", "tag", "v1.2.3")
    assert version(repository) == "1.2.3"


def test_commits_after_a_tag(repository):
    run(repository, "git", "tag", "v1.2.3")
    commit(repository)
    last = commit(repository)
    assert is_of(version(repository), "1.2.4.dev2", last)


def test_a_tag_that_names_no_version_is_ignored(repository):
    run(repository, "git", "tag", "v1.2.3")
    last = commit(repository)
    run(repository, "git", "tag", "benchmarks-1")
    assert is_of(version(repository), "1.2.4.dev1", last)


def test_a_clone_without_tags(repository):
    last = commit(repository)
    assert is_of(version(repository), "0.1.dev2", last)


def test_a_shallow_clone(repository, tmp_path):
    run(repository, "git", "tag", "v1.2.3")
    last = commit(repository)
    run(tmp_path, "git", "clone", "--quiet", "--depth=1", repository.as_uri(), "shallow")
    assert is_of(version(tmp_path / "shallow"), "0.1.dev1", last)


def test_an_sdist_has_its_version_within(repository, tmp_path):
    run(repository, "git", "tag", "v1.2.3")
    run(repository, sys.executable, "-c", BUILD.format("build_sdist"), tmp_path / "sdist")
    sdist = tmp_path / "sdist/dask_fabric-1.2.3.tar.gz"
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    assert version(tmp_path / "unpacked/dask_fabric-1.2.3") == "1.2.3"


def test_a_tree_without_git(tree):
    assert version(tree) == "0.1.dev0"
