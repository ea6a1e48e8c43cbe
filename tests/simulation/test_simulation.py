"""Two connections in random orders of events, and planted bugs that this must find."""

import random
import re
from pathlib import Path

import pytest

from .bugs import BUGS
from .world import Failure, run

SCHEDULES = 4000
BATCHES = 8
FIND_WITHIN = 10_000


@pytest.mark.parametrize("batch", range(BATCHES))
def test_schedules(batch):
    """A failure names its seed: ``python -m tests.simulation --seed N --count 1`` repeats it."""
    count = SCHEDULES // BATCHES
    for seed in range(batch * count, (batch + 1) * count):
        run(seed)


def test_a_seed_repeats_its_run_in_every_step():
    seeds = random.Random(1).sample(range(1 << 30), 20)
    assert [run(seed).trace_text() for seed in seeds] == [run(seed).trace_text() for seed in seeds]


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug):
    with pytest.raises(Failure):
        for seed in range(FIND_WITHIN):
            run(seed, parts=BUGS[bug])


def test_the_page_names_the_planted_bugs():
    page = Path(__file__).parents[2] / "docs/architecture.md"
    table = page.read_text().partition("| planted bug |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| ([^|]+) \| \d+ \|$", table, re.M) == list(BUGS)


def test_a_failure_can_be_repeated_by_its_seed():
    with pytest.raises(Failure, match=r"^seed \d+: Violation: ") as caught:
        for seed in range(FIND_WITHIN):
            run(seed, parts=BUGS["bytes are dropped"])
    with pytest.raises(Failure) as again:
        run(caught.value.seed, parts=BUGS["bytes are dropped"])
    assert str(again.value) == str(caught.value)
