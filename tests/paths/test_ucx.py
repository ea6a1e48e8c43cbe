"""Frames by UCX between two processes, for each UCX library of this machine."""

from __future__ import annotations

import itertools
import os
import signal

import pytest

from .conftest import join

SIZES = [0, 1, 100, 8_191, 65_536, 1_000_000, 10_000_001, 100_000_000]
BIG, MANY = 60_000_000, 8


# ---- frames


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("first", ["offer", "post"])
def test_a_frame_arrives_as_it_was(pair, size, first):
    near, far = pair
    if first == "post":
        receive = near(f"post(1, {size})")
    send = far(f"offer(2, {size})")
    if first == "offer":
        receive = near(f"post(1, {size})")
    assert near(f"received(1, {receive}, {size})")
    assert far(f"wait(2, {send})") == size
    assert near.figure("refused_count") == far.figure("refused_count") == 0


def test_many_frames_in_flight_both_ways(pair):
    near, far = pair
    sizes = [(index * 7919) % 400_000 for index in range(200)]
    sides = ((near, 1), (far, 2))
    operations = {}
    # Every other frame is posted before it is offered, the rest after.
    for early, late in (("post", "offer"), ("offer", "post")):
        for index, size in enumerate(sizes):
            for peer, token in sides:
                kind = early if index % 2 else late
                operations[kind, token, index] = peer(f"{kind}({token}, {size}, {index})")
    for peer, token in sides:
        for index, size in enumerate(sizes):
            receive, send = (operations[kind, token, index] for kind in ("post", "offer"))
            assert peer(f"received({token}, {receive}, {size}, {index})")
            assert peer(f"wait({token}, {send})") == size
        assert peer.figure("in_flight_count") == peer.figure("kept_count") == 0


def test_frames_of_one_process_to_itself(new_peer):
    peer = new_peer()
    peer.address = peer.start()
    join(peer, peer, 1, 2)
    receive, send = peer("post(1, 5000000)"), peer("offer(2, 5000000)")
    assert peer(f"received(1, {receive}, 5000000)")
    assert peer(f"wait(2, {send})") == 5_000_000
    receive, send = peer("post(2, 10)"), peer("offer(1, 10)")
    assert peer(f"received(2, {receive}, 10)")
    peer("close(1)")
    peer("close(2)")
    peer.until("ucx.statistics()['connection_count'] == 0")


# ---- what a peer may not do


@pytest.mark.parametrize("first", ["offer", "post"])
@pytest.mark.parametrize("size", [99, 101, 0, 5_000_000])
def test_a_frame_of_another_length_fails_the_receive(pair, size, first):
    near, far = pair
    if first == "post":
        receive = near("post(1, 100)")
    far(f"offer(2, {size})")
    if first == "offer":
        near.until("ucx.statistics()['kept_count'] == 1")
        receive = near("post(1, 100)")
    assert near(f"wait(1, {receive})") == "EMSGSIZE"
    assert near(f"untouched(1, {receive})")
    # and the connection is as good as before
    receive, _ = near("post(1, 2000000, 1)"), far("offer(2, 2000000, 1)")
    assert near(f"received(1, {receive}, 2000000, 1)")


def test_a_frame_for_a_closed_endpoint_is_refused(pair):
    near, far = pair
    join(near, far, 3, 4)
    receive, _ = near("post(3, 10)"), far("offer(4, 10)")
    assert near(f"received(3, {receive}, 10)")
    near("close(3)")
    send = far("offer(4, 3000000)")
    assert far(f"wait(4, {send})") != 3_000_000
    assert near.figure("refused_count") == 1
    assert near.figure("kept_count") == 0


def test_an_unknown_token_is_never_wired(pair):
    near, far = pair
    near(f"connect({far.address!r}, 5, 666)")
    send = near("offer(5, 1000)")
    receive, _ = near("post(1, 10)"), far("offer(2, 10)")  # the others are not disturbed
    assert near(f"received(1, {receive}, 10)")
    assert not near("endpoints[5].is_wired")
    assert near(f"endpoints[5].cancel({send})")
    near("close(5)")
    assert near.figure("held_count") == 0


def test_who_does_not_greet_is_not_tried_again_for_a_while(pair):
    near, far = pair
    near(f"connect({far.address!r}, 5, 666)")
    receive = near("post(5, 1000)")
    near("endpoints[5].fail()")
    assert near(f"wait(5, {receive})") == "ECANCELED"
    near(f"connect({far.address!r}, 6, 667)")
    for operation in (near("post(6, 1000)"), near("offer(6, 1000)")):
        assert near(f"wait(6, {operation})") == "ETIMEDOUT"
    # Its own greeting ends that.
    send = far("offer(2, 10)")
    near.until("endpoints[1].is_wired")
    receive = near("post(1, 10)")
    assert near(f"received(1, {receive}, 10)")
    assert far(f"wait(2, {send})") == 10
    join(near, far, 7, 8)
    exchange(near, far, 7, 8)


def test_who_has_greeted_others_is_tried_again_at_once(pair):
    near, far = pair
    exchange(near, far, 1, 2)
    near(f"connect({far.address!r}, 5, 666)")
    near("post(5, 1000)")
    near("endpoints[5].fail()")
    join(near, far, 7, 8)
    exchange(near, far, 7, 8)


def test_frames_that_nobody_wants_go_with_their_endpoint(pair):
    near, far = pair
    for index in range(10):
        far(f"offer(2, {index * 100000}, {index})")
    near.until("ucx.statistics()['kept_count'] == 10")
    near("close(1)")
    assert near.figure("kept_count") == near.figure("endpoint_count") == 0


# ---- endpoints


def test_endpoints_to_one_process_share_a_connection(pair):
    near, far = pair
    for token in (11, 21):
        join(near, far, token, token + 1)
    for token in (1, 11, 21):
        receive, _ = near(f"post({token}, 1000000)"), far(f"offer({token + 1}, 1000000)")
        assert near(f"received({token}, {receive}, 1000000)")
    assert near.figure("connection_count") == far.figure("connection_count") == 1
    near("close(1)")
    near("close(11)")
    receive, _ = near("post(21, 1000000)"), far("offer(22, 1000000)")
    assert near(f"received(21, {receive}, 1000000)")
    near("close(21)")
    assert near.figure("endpoint_count") == 0
    near.until("ucx.statistics()['connection_count'] == 0")
    assert near.figure("break_count") == 0


def test_a_connection_waits_for_the_next_endpoint(pair):
    near, far = pair
    for token in range(1, 11, 2):
        receive, _ = near(f"post({token}, 3000000)"), far(f"offer({token + 1}, 3000000)")
        assert near(f"received({token}, {receive}, 3000000)")
        near(f"close({token})")
        far(f"close({token + 1})")
        assert near.figure("endpoint_count") == 0
        assert near.figure("connection_count") == 1  # the same one
        join(near, far, token + 2, token + 3)
    for peer in pair:
        assert peer.figure("break_count") == 0


@pytest.mark.parametrize("closes", ["near", "far"])
def test_a_pair_meets_again_and_again(pair, closes):
    near, far = pair
    for token in range(1, 11, 2):
        receive, send = near(f"post({token}, 3000000)"), far(f"offer({token + 1}, 3000000)")
        assert near(f"received({token}, {receive}, 3000000)")
        assert far(f"wait({token + 1}, {send})") == 3_000_000
        receive, send = far(f"post({token + 1}, 100)"), near(f"offer({token}, 100)")
        assert far(f"received({token + 1}, {receive}, 100)")
        # One side still has the old connection when the other makes its next one.
        near(f"close({token})") if closes == "near" else far(f"close({token + 1})")
        join(near, far, token + 2, token + 3)


def test_a_token_names_one_endpoint(pair):
    near, far = pair
    with pytest.raises(AssertionError, match="token in use"):
        near(f"connect({far.address!r}, 1, 2)")


def test_a_closed_endpoint_takes_nothing(pair):
    near, _ = pair
    near("endpoints[1].close()")
    with pytest.raises(AssertionError, match="UnavailableError: the endpoint is closed"):
        near("offer(1, 10)")
    assert near("endpoints[1].error") != 0


ADDRESSES = {"empty": b"", "short": b"no address", "marked": b"\xff" * 200, "long": bytes(100_000)}


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES)
def test_an_address_that_is_none(pair, address):
    near, _ = pair
    with pytest.raises(AssertionError, match="bad address"):
        near(f"connect({address!r}, 5, 6)")


def test_endpoints_without_frames_make_no_connection(pair):
    near, far = pair
    join(near, far, 3, 4)
    near("close(3)")
    far("close(4)")
    assert near.figure("connection_count") == far.figure("connection_count") == 0
    exchange(near, far, 1, 2)
    assert near.figure("connection_count") == far.figure("connection_count") == 1


# ---- cancelling


def test_a_receive_that_waits_is_cancelled_alone(pair):
    near, far = pair
    first, second = near("post(1, 1000, 0)"), near("post(1, 1000, 1)")
    assert near(f"endpoints[1].cancel({first})")
    far("offer(2, 1000, 0)")
    far("offer(2, 1000, 1)")
    assert near(f"received(1, {second}, 1000, 1)")
    near.until("ucx.statistics()['kept_count'] == 1")
    assert near(f"untouched(1, {first})")
    assert not near(f"endpoints[1].cancel({first})")


# ---- faults


def exchange(near, far, near_token, far_token):
    """Send a frame, so that both endpoints are wired up."""
    receive = near(f"post({near_token}, 10, 1000)")
    send = far(f"offer({far_token}, 10, 1000)")
    assert near(f"received({near_token}, {receive}, 10, 1000)")
    assert far(f"wait({far_token}, {send})") == 10
    near.until(f"endpoints[{near_token}].is_wired")


def begin_transfer(sender, receiver, tokens):
    """Have large frames on their way, and give the operations of both."""
    receives = [receiver(f"post({tokens[1]}, {BIG}, {index})") for index in range(MANY)]
    sends = [sender(f"offer({tokens[0]}, {BIG}, {index})") for index in range(MANY)]
    return sends, receives


@pytest.mark.parametrize("dies", ["sender", "receiver"])
def test_death_in_the_middle(pair, dies):
    near, far = pair
    sends, receives = begin_transfer(far, near, (2, 1))
    dying, living = (far, near) if dies == "sender" else (near, far)
    token, operations = (1, receives) if dies == "sender" else (2, sends)
    first = living(f"wait({token}, {operations[0]})")
    dying.kill()
    living(f"endpoints[{token}].fail()")
    living.until("ucx.statistics()['in_flight_count'] == 0")
    ends = [first, *(living(f"wait({token}, {operation})") for operation in operations[1:])]
    assert "none yet" not in ends
    living(f"close({token})")
    assert living.figure("connection_count") == living.figure("posted_count") == 0
    assert living.end() == 0


def begin_against_stopped(pair, stops):
    """Have frames in flight of which none can arrive, and give the running side's."""
    near, far = pair
    if stops == "receiver":
        begun = near, far, "post(1, {}, {})", "offer(2, {}, {})"
    else:
        begun = far, near, "offer(2, {}, {})", "post(1, {}, {})"
    stopped, running, theirs, ours = begun
    for index in range(MANY):
        stopped(theirs.format(BIG, index))
    if stops == "sender":
        running.until(f"ucx.statistics()['kept_count'] == {MANY}")
    else:
        exchange(near, far, 1, 2)
    os.kill(stopped.process.pid, signal.SIGSTOP)
    operations = [running(ours.format(BIG, index)) for index in range(MANY)]
    assert running.figure("in_flight_count") == MANY
    return stopped, running, operations


@pytest.mark.parametrize("stops", ["sender", "receiver"])
def test_a_stopped_peer_is_left_and_met_again(pair, stops):
    near, far = pair
    stopped, running, operations = begin_against_stopped(pair, stops)
    token = 1 if stops == "sender" else 2
    running(f"endpoints[{token}].fail()")
    ends = {running(f"wait({token}, {operation})") for operation in operations}
    assert not ends & {BIG, "none yet"}
    assert running.figure("in_flight_count") == 0
    os.kill(stopped.process.pid, signal.SIGCONT)
    # The stopped one knows nothing yet: a new endpoint tells it.
    join(near, far, 3, 4)
    receive, send = near("post(3, 2000000)"), far("offer(4, 2000000)")
    assert near(f"received(3, {receive}, 2000000)")
    assert far(f"wait(4, {send})") == 2_000_000
    near("close(1)")
    far("close(2)")
    receive, send = near("post(3, 2000000, 1)"), far("offer(4, 2000000, 1)")
    assert near(f"received(3, {receive}, 2000000, 1)")


@pytest.mark.parametrize("stops", ["sender", "receiver"])
def test_what_is_in_flight_is_cancelled_with_its_connection(pair, stops):
    _, running, operations = begin_against_stopped(pair, stops)
    token = 1 if stops == "sender" else 2
    assert running(f"endpoints[{token}].cancel({operations[3]})")
    assert running.figure("break_count") == 1
    del operations[3]
    ends = {running(f"wait({token}, {operation})") for operation in operations}
    assert not ends & {BIG, "none yet"}


@pytest.mark.parametrize("stops", ["sender", "receiver"])
def test_closing_ends_what_is_in_flight(pair, stops):
    _, running, _ = begin_against_stopped(pair, stops)
    running(f"close({1 if stops == 'sender' else 2})")
    figures = running("ucx.statistics()")
    del figures["peer_count"], figures["break_count"]
    assert set(figures.values()) == {0}


def test_a_broken_endpoint_fails_what_comes_later(pair):
    near, far = pair
    receive, _ = near("post(1, 10)"), far("offer(2, 10)")
    assert near(f"received(1, {receive}, 10)")
    waiting = near("post(1, 10, 1)")
    near("endpoints[1].fail()")
    for operation in (waiting, near("offer(1, 10, 2)"), near("post(1, 10, 3)")):
        assert near(f"wait(1, {operation})") == "ECANCELED"
    assert near("endpoints[1].error") != 0


NUMBERS = itertools.count(2000)  # each frame has another


def begins_anew(peer, token) -> bool:
    """Revive an endpoint; False if its counterpart does not answer."""
    peer.until(f"endpoints[{token}].revive()")  # once UCX has ended what was in flight
    if any(peer(f"endpoints[{token}].is_wired") for _ in range(100)):
        return True
    peer(f"endpoints[{token}].break_again()")
    return False


def work_again(near, far, own=1, its=2) -> None:
    """Have a frame arrive by a broken pair. Connections that were broken at once may need some time
    to settle, and break it again."""
    for number in itertools.islice(NUMBERS, 100):
        if not begins_anew(near, own):
            continue
        receive = near(f"post({own}, 2000000, {number})")
        send = far(f"offer({its}, 2000000, {number})")
        is_right = near(f"received({own}, {receive}, 2000000, {number})")
        if far(f"wait({its}, {send})") == 2_000_000 and is_right:
            return
        near(f"endpoints[{own}].fail()")
    raise AssertionError("it never works again")


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("both_know", [False, True])
def test_a_broken_pair_begins_anew(pair, both_know, others):
    near, far = pair
    if others:
        join(near, far, 3, 4)
        exchange(near, far, 3, 4)
    exchange(near, far, 1, 2)
    for _ in range(3):
        near("endpoints[1].fail()")
        if both_know:
            far("endpoints[2].fail()")
        work_again(near, far)


@pytest.mark.parametrize("stops", ["sender", "receiver"])
def test_a_stopped_pair_begins_anew(pair, stops):
    stopped, running, operations = begin_against_stopped(pair, stops)
    own, its = (1, 2) if stops == "sender" else (2, 1)
    running(f"endpoints[{own}].fail()")
    assert not {running(f"wait({own}, {operation})") for operation in operations} & {BIG}
    assert not begins_anew(running, own)  # nobody answers
    os.kill(stopped.process.pid, signal.SIGCONT)
    work_again(running, stopped, own, its)


def test_the_peer_is_told_of_a_break_that_concerns_other_endpoints(pair):
    near, far = pair
    join(near, far, 3, 4)
    exchange(near, far, 1, 2)
    exchange(near, far, 3, 4)
    waiting = far("post(4, 10)")
    near("endpoints[1].fail()")
    # Nothing was in flight: only the peer's next connection can tell.
    assert far(f"wait(4, {waiting})") == "ECONNRESET"
    assert near.figure("break_count") == 1
    join(near, far, 5, 6)
    receive, send = near("post(5, 2000000)"), far("offer(6, 2000000)")
    assert near(f"received(5, {receive}, 2000000)")
    assert far(f"wait(6, {send})") == 2_000_000


# ---- the process


def test_idle_costs_nothing(pair):
    near, far = pair
    receive, _ = near("post(1, 5000000)"), far("offer(2, 5000000)")
    assert near(f"received(1, {receive}, 5000000)")
    near.until("thread_figures()[0] == 'S'")
    before = near("thread_figures()")
    for _ in range(200):
        far("thread_figures()")
    assert near("thread_figures()") == before


def test_a_peer_that_stops_in_the_middle_costs_little(pair):
    near, far = pair
    begin_transfer(near, far, (1, 2))
    os.kill(far.process.pid, signal.SIGSTOP)
    last = near(f"offer(1, {BIG}, {MANY})")  # the others may have arrived before the stop
    assert near(f"wait(1, {last}, 0.5)") == "none yet"
    before = near("time.process_time()")
    assert near(f"wait(1, {last}, 1.0)") == "none yet"
    assert near("time.process_time()") - before < 0.2


def test_a_forked_child_gets_a_clear_error(pair):
    near, far = pair
    for expression in ("ucx.address()", "offer(1, 10)", "post(1, 10)", "ucx_worker.start(None)",
                       f"connect({far.address!r}, 5, 6)"):  # fmt: skip
        assert "ForkedError" in near(f"in_forked_child({expression!r})")
    assert "ended" in near("in_forked_child('close(1), \"ended\"')")
    receive, _ = near("post(1, 10)"), far("offer(2, 10)")
    assert near(f"received(1, {receive}, 10)")


def test_an_end_in_the_middle_is_orderly(pair):
    near, far = pair
    begin_transfer(far, near, (2, 1))
    assert far.end() == 0
    assert near.end() == 0


def test_settings_are_ucxs_alone(new_peer):
    peer = new_peer()
    variables = "sorted(name for name in os.environ if name.startswith('UCX_'))"
    before = peer(variables)
    peer.start(TLS="self,tcp")
    assert peer(variables) == before


def test_options_reach_ucx(new_peer):
    peer, plain = new_peer(), new_peer()
    assert len(peer.start(TLS="self,tcp")) < len(plain.start())


def test_a_process_has_one_ucx(new_peer):
    peer = new_peer()
    assert peer.start() == peer.start()
    assert tuple(peer("ucx.version()")) == peer.library.version
    with pytest.raises(AssertionError, match=r"UnavailableError: UCX runs already, from "):
        peer("start(\"Library('/other/libucp.so.0', 'x', (1, 22, 0))\")")


def test_no_ucx(new_peer):
    peer = new_peer()
    with pytest.raises(AssertionError, match="UnavailableError: UCX does not run"):
        peer("ucx.address()")
    with pytest.raises(AssertionError, match="UnavailableError: UCX cannot be loaded: /no/libucm"):
        peer("start(\"Library('/no/libucp.so.0', 'x', (1, 22, 0))\")")
    assert peer("ucx.statistics()['endpoint_count']") == 0


def test_threads_are_bound_to_the_device_before_ucx_works_there(new_peer):
    early, late = new_peer(), new_peer()
    early("bind()")
    early.address = early.start()
    early.until("bound_count() == 2")  # who starts UCX, and the thread
    late.address = late.start()
    late("bind()")
    late.until("bound_count() == 1")
    join(early, late, 1, 2)
    operation = late("post(2, 100_000)")
    early("offer(1, 100_000)")
    assert late(f"received(2, {operation}, 100_000)")
    assert (early("bound_count()"), late("bound_count()")) == (2, 1)  # for host memory nobody is


def test_ucx_does_not_start_without_the_device(new_peer):
    peer = new_peer()
    peer("bind_in_vain()")
    with pytest.raises(AssertionError, match="the context of the device"):
        peer.start()
