"""How many lanes are kept, by what transfers moved."""

from __future__ import annotations

import pytest

from dask_fabric.paths.lanes import opener
from dask_fabric.paths.lanes.policy import Policy

MB = 10**6


def run(rate_of, nbytes=100 * MB, most=8, count=60) -> Policy:
    """Move as many messages, each at the rate (bytes per second) of the number of lanes."""
    policy = Policy(most)
    for _ in range(count):
        policy.moved(nbytes, nbytes / rate_of(policy.count), policy.count)
    return policy


@pytest.mark.parametrize("nbytes", [9 * MB, 30 * MB, 400 * MB])
@pytest.mark.parametrize("most", [2, 3, 4, 8])
def test_a_capped_flow_gets_all_lanes(nbytes, most):
    policy = run(lambda count: 50 * MB * count, nbytes, most)
    assert policy.is_settled and policy.count == most
    (first, *_, last) = policy.paid()
    assert first == (1, pytest.approx(50 * MB)) and last == (most, pytest.approx(50 * MB * most))


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.2])
def test_lanes_that_bring_little_are_given_up(gain):
    policy = run(lambda count: 1000 * MB * (1 if count == 1 else gain))
    assert policy.is_settled and policy.count == 1


@pytest.mark.parametrize(("total", "expected"), [(100, 2), (120, 2), (200, 4), (390, 8)])
def test_the_last_number_that_paid_is_kept(total, expected):
    policy = run(lambda count: min(50 * count, total) * MB)
    assert policy.is_settled and policy.count == expected


def test_few_or_small_transfers_decide_nothing():
    assert run(lambda count: 50 * MB, nbytes=8 * MB).rates == []
    assert run(lambda count: 50 * MB, nbytes=20 * MB, count=2).rates == []


def test_the_first_transfer_over_new_lanes_does_not_count():
    policy = Policy(8)
    for _ in range(6):
        policy.moved(10 * MB, 0.2, 1)
    assert policy.count == 2
    policy.moved(10 * MB, 10.0, 2)
    for _ in range(6):
        policy.moved(10 * MB, 0.1, 2)
    assert policy.count == 4


def test_one_slow_transfer_does_not_decide():
    policy = Policy(8)
    for seconds in (0.2, 0.2, 9.0, 0.2, 0.2, 0.2):
        policy.moved(10 * MB, seconds, 1)
    assert policy.rates == [pytest.approx(50 * MB)]


def test_transfers_over_another_number_do_not_count():
    policy = Policy(8)
    for _ in range(20):
        policy.moved(100 * MB, 1.0, 3)
    assert policy.rates == [] and policy.count == 1


def test_lanes_that_cannot_be_opened_are_given_up():
    policy = run(lambda count: 50 * MB * count, count=2)
    assert policy.count == 4 and not policy.is_settled
    policy.give_up()
    assert policy.count == 2 and policy.is_settled


def test_what_was_found_out_holds_for_the_host_and_for_a_while(monkeypatch):
    monkeypatch.setattr(opener, "_findings", {})
    found = opener.finding_of("a", 8, 0.0)
    assert opener.finding_of("a", 8, 1e6) is found  # it is not settled
    found.settled_at = 1e6
    assert opener.finding_of("a", 8, 1e6 + 599) is found
    assert opener.finding_of("b", 8, 1e6) is not found
    assert opener.finding_of("a", 8, 1e6 + 601) is not found
