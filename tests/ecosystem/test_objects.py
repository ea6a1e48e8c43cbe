"""Objects of other libraries go from one worker process to another, and arrive as they were."""

from __future__ import annotations

import pytest
from benchmarks import objects
from benchmarks.objects import KINDS, make, received
from distributed import get_worker

from .conftest import PATIENCE_SECONDS

NBYTES = 4_000_000
OWN, COPIED, PICKLED = "own", "copied", "pickled"
# How most bytes of an object become frames, by Dask's serialization; others are sent from the
# object's own memory.
WAYS = {
    "pandas, Arrow strings": COPIED,  # pandas combines the chunks, also of a single one
    "pandas, strings as Python objects": PICKLED,
    "pandas, times with a zone": PICKLED,
    "PyArrow table": COPIED,
    "Polars DataFrame": PICKLED,
}
# Those that the receiver builds from copies of what has arrived.
REBUILT = {name for name, way in WAYS.items() if way == PICKLED}
WRITTEN = [name for name, kind in KINDS.items() if kind.write]


def look(thing, name):
    """Whether an object equals one that is made here."""
    return get_worker().address, KINDS[name].equal(thing, make(name, NBYTES))


def write(thing, name):
    """Whether an object equals the original, and another one after its first value is changed."""
    kind, original = KINDS[name], make(name, NBYTES)
    before = kind.equal(thing, original)
    kind.write(thing)
    expected = make(name, NBYTES)
    kind.write(expected)
    return before, kind.equal(thing, original), kind.equal(thing, expected)


@pytest.mark.parametrize("name", KINDS)
def test_they_are_equal_on_arrival(client, left, right, name):
    made = client.submit(make, name, NBYTES, workers=[left], pure=False)
    looked = client.submit(look, made, name, workers=[right], pure=False)
    assert looked.result(PATIENCE_SECONDS) == (right, True)
    assert KINDS[name].equal(made.result(PATIENCE_SECONDS), make(name, NBYTES))


@pytest.mark.own
@pytest.mark.parametrize("name", KINDS)
def test_their_frames_take_the_path_of_large_frames(client, left, right, name):
    """Also a pickle is a frame of its own: the stream has the messages around the frames alone."""
    frames = objects.way(make(name, NBYTES))
    made = client.submit(make, name, NBYTES, workers=[left], pure=False)
    before = received(client, right)
    looked = client.submit(look, made, name, workers=[right], pure=False)
    assert looked.result(PATIENCE_SECONDS) == (right, True)
    after = received(client, right)
    moved = {path: after[path] - before[path] for path in after}
    nbytes = frames["own"] + frames["copied"] + frames["pickled"]
    assert nbytes > NBYTES / 2
    assert moved["shm"] + moved["cma"] > 0.95 * nbytes
    assert moved["stream"] < 0.05 * nbytes + 100_000


@pytest.mark.parametrize("name", WRITTEN)
def test_they_are_writeable_and_belong_to_the_receiver(client, left, right, name):
    made = client.submit(make, name, NBYTES, workers=[left], pure=False)
    written = client.submit(write, made, name, workers=[right], pure=False)
    assert written.result(PATIENCE_SECONDS) == (True, False, True)
    looked = client.submit(look, made, name, workers=[left], pure=False)
    assert looked.result(PATIENCE_SECONDS) == (left, True)


@pytest.mark.parametrize("name", KINDS)
def test_how_they_become_frames(name):
    """This is Dask's part; docs/ecosystem.md has it in a table."""
    found = objects.way(make(name, NBYTES))
    nbytes = sum(found[way] for way in (OWN, COPIED, PICKLED))
    assert found[WAYS.get(name, OWN)] > 0.95 * nbytes
    assert found["count"] > 1 or name in WAYS or "NumPy" in name or "PyTorch" in name


@pytest.mark.parametrize("name", KINDS)
def test_what_arrives_is_used_in_place(name):
    assert objects.arrives_in_place(make(name, NBYTES)) is (name not in REBUILT)
