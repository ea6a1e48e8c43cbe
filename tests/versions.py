"""Run the tests on other versions of Python, with the lowest or the newest dependencies.

Each has a virtual environment of its own. Nothing is installed again without need::

    python tests/versions.py 3.10:lowest 3.13:newest -- tests/wire -x
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARALLEL = ("-n", "3", "--dist", "loadfile")  # tests wait more than they compute
KINDS = ("lowest", "newest")
EXTRA = "test"
_REQUIREMENT = re.compile(r'"([A-Za-z0-9_.-]+)\s*>=\s*([0-9.]+)"')


def lowest(pyproject: str) -> list[str]:
    """Give the lowest requirements of a pyproject.toml, without those of its build.

    Read with a regular expression, because Python before 3.11 cannot read TOML.
    """
    text = pyproject.partition("[project]")[2]
    return [f"{name}=={version}" for name, version in dict(_REQUIREMENT.findall(text)).items()]


def interpreter(version: str) -> str | None:
    """Find a Python of *version*, such as 3.10: on the path, or among those of pyenv."""
    name = f"python{version}"
    places = [
        shutil.which(name),
        *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")),
    ]
    for place in filter(None, places):
        command = [place, "-c", "import sys; print(*sys.version_info[:2], sep='.')"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() == version:
            return str(place)
    return None


def prepare(python: str, version: str, kind: str) -> Path:
    """Create or update the environment, and return its interpreter."""
    folder = ROOT / f".venv-{version}-{kind}"
    own = folder / "bin/python"
    if not own.exists():
        run([python, "-m", "venv", folder])
    wheels = folder / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    run([own, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, ROOT])
    (wheel,) = wheels.glob("*.whl")
    constraints = folder / "constraints.txt"
    wanted = lowest((ROOT / "pyproject.toml").read_text()) if kind == "lowest" else []
    constraints.write_text("\n".join(wanted) + "\n")
    install = [own, "-m", "pip", "install", "--quiet", "--constraint", constraints]
    stamp = folder / "stamp"
    state = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != state:
        run([*install, *(["--upgrade"] if kind == "newest" else []), f"{wheel}[{EXTRA}]"])
        stamp.write_text(state)
    run([*install, "--no-deps", "--force-reinstall", wheel])
    return own


def run(command: Iterable[object]) -> None:
    words = [str(word) for word in command]
    print("$", *words, flush=True)
    subprocess.run(words, check=True, cwd=ROOT)


def main() -> int:
    """Run everything, and give the exit status: 0 if no test failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("targets", nargs="+", metavar="VERSION:KIND", help=" or ".join(KINDS))
    arguments, options = sys.argv[1:], []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, options = arguments[:cut], arguments[cut + 1 :]
    outcomes = {}
    for target in parser.parse_args(arguments).targets:
        version, _, kind = target.partition(":")
        if kind not in KINDS:
            parser.error(f"{target!r}: expected VERSION:{' or VERSION:'.join(KINDS)}")
        python = interpreter(version)
        if python is None:
            outcomes[target] = f"SKIPPED: there is no Python {version} on this host"
            continue
        own = prepare(python, version, kind)
        done = subprocess.run([str(own), "-m", "pytest", *PARALLEL, *options], cwd=ROOT)
        outcomes[target] = "passed" if done.returncode == 0 else f"FAILED ({done.returncode})"
    print(*(f"{target}: {outcome}" for target, outcome in outcomes.items()), sep="\n")
    return any(outcome.startswith("FAILED") for outcome in outcomes.values())


if __name__ == "__main__":
    sys.exit(main())
