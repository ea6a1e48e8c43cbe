"""What a program can do with a cluster of Dask besides computing."""

from __future__ import annotations

import operator

import numpy as np
import pytest
from distributed import (
    Client,
    Event,
    Future,
    Lock,
    MultiLock,
    Queue,
    Semaphore,
    Variable,
    WorkerPlugin,
    get_client,
    get_task_stream,
    get_worker,
    performance_report,
    worker_client,
)
from distributed.diagnostics.plugin import NannyPlugin, SchedulerPlugin

from .conftest import PATIENCE_SECONDS

COUNT = 1 << 18  # 2 MiB, a large frame
TOTAL = COUNT * (COUNT - 1) // 2


class Sum:
    """An actor that adds up arrays."""

    def __init__(self) -> None:
        self.total = np.zeros(COUNT, "i8")

    def add(self, array: np.ndarray) -> np.ndarray:
        self.total += array
        return self.total.copy()

    def where(self) -> str:
        return get_worker().address


def test_an_actor(client, left, right):
    actor = client.submit(Sum, actor=True, workers=[left]).result(PATIENCE_SECONDS)
    assert actor.where().result(PATIENCE_SECONDS) == left
    once = actor.add(np.arange(COUNT)).result(PATIENCE_SECONDS)
    np.testing.assert_array_equal(once, np.arange(COUNT))

    def add(actor):
        return actor.add(np.arange(COUNT)).result(PATIENCE_SECONDS)

    twice = client.submit(add, actor, workers=[right]).result(PATIENCE_SECONDS)
    np.testing.assert_array_equal(twice, np.arange(COUNT) * 2)


def put_array(name: str) -> None:
    future = get_client().scatter(np.arange(COUNT), direct=True)
    Queue(name).put(future, timeout=PATIENCE_SECONDS)
    Queue(name).put({"plain": "text"}, timeout=PATIENCE_SECONDS)


def get_array(name: str) -> tuple[int, object]:
    future = Queue(name).get(timeout=PATIENCE_SECONDS)
    plain = Queue(name).get(timeout=PATIENCE_SECONDS)
    return int(future.result(PATIENCE_SECONDS).sum()), plain


def test_a_queue_between_workers(client, left, right):
    got = client.submit(get_array, "q", workers=[right], pure=False)
    put = client.submit(put_array, "q", workers=[left], pure=False)
    assert got.result(PATIENCE_SECONDS) == (TOTAL, {"plain": "text"})
    put.result(PATIENCE_SECONDS)


def test_a_variable_with_a_future(client, left, right):
    variable = Variable("v")
    variable.set(client.submit(np.arange, COUNT, workers=[left]), timeout=PATIENCE_SECONDS)

    def total(name):
        return int(Variable(name).get(timeout=PATIENCE_SECONDS).result(PATIENCE_SECONDS).sum())

    found = client.submit(total, "v", workers=[right]).result(PATIENCE_SECONDS)
    assert found == TOTAL
    variable.delete()


def test_an_event(client, left, right):
    def wait():
        return Event("e").wait(timeout=PATIENCE_SECONDS)

    waiting = client.submit(wait, workers=[left], pure=False)
    client.submit(lambda: Event("e").set(), workers=[right], pure=False).result(PATIENCE_SECONDS)
    assert waiting.result(PATIENCE_SECONDS) is True


@pytest.mark.parametrize(
    "make",
    [
        lambda: Lock("l"),
        lambda: MultiLock(names=["m", "n"]),
        lambda: Semaphore(name="s", max_leases=1),
    ],
    ids=["Lock", "MultiLock", "Semaphore"],
)
def test_one_at_a_time(client, left, right, tmp_path, make):
    """Without exclusion, some of the additions to the file would be lost."""
    file = tmp_path / "count"
    file.write_text("0")

    def add(_):
        lock = make()
        assert lock.acquire(timeout=PATIENCE_SECONDS)
        try:
            file.write_text(str(int(file.read_text()) + 1))
        finally:
            lock.release()
        return get_worker().address

    ways = [
        client.submit(add, number, workers=[worker], pure=False)
        for number in range(10)
        for worker in (left, right)
    ]
    assert {future.result(PATIENCE_SECONDS) for future in ways} == {left, right}
    assert file.read_text() == "20"


def test_upload_file(client, left, right, tmp_path):
    module = tmp_path / "uploaded_by_a_test.py"
    module.write_text("def answer():\n    return 42\n")
    client.upload_file(str(module))

    def answer():
        import uploaded_by_a_test

        return uploaded_by_a_test.answer()

    for worker in (left, right):
        future = client.submit(answer, workers=[worker], pure=False)
        assert future.result(PATIENCE_SECONDS) == 42


def test_get_versions(client):
    found = client.get_versions(check=True)
    assert len(found["workers"]) == 2
    packages = found["client"]["packages"]
    assert packages["distributed"] == found["scheduler"]["packages"]["distributed"]


def transposed_sum(client):
    da = pytest.importorskip("dask.array")
    array = da.ones((1000, 1000), chunks=250)
    return client.compute((array + array.T).sum()).result(PATIENCE_SECONDS)


def test_performance_report(client, tmp_path):
    with client.as_current(), performance_report(filename=tmp_path / "report.html"):
        assert transposed_sum(client) == 2_000_000
    assert "Dask Performance Report" in (tmp_path / "report.html").read_text()


def test_get_task_stream(client, left, right):
    with get_task_stream(client) as stream:
        transposed_sum(client)
    assert {task["worker"] for task in stream.data} == {left, right}


def test_run_on_the_scheduler_and_on_workers(client, left, right):
    def address(dask_scheduler):
        return dask_scheduler.address

    assert client.run_on_scheduler(address) == client.scheduler.address
    arrays = client.run(np.arange, COUNT)
    assert set(arrays) == {left, right}
    for array in arrays.values():
        np.testing.assert_array_equal(array, np.arange(COUNT))


class OnWorkers(WorkerPlugin):
    name = "of-a-test"

    def setup(self, worker):
        worker.of_a_test = np.arange(3)


class OnScheduler(SchedulerPlugin):
    name = "of-a-test"

    def start(self, scheduler):
        scheduler.of_a_test = "started"


class OnNannies(NannyPlugin):
    name = "of-a-test"

    def setup(self, nanny):
        nanny.of_a_test = "set up"


def test_register_plugin(client, left, right):
    client.register_plugin(OnWorkers())
    client.register_plugin(OnScheduler())
    client.register_plugin(OnNannies())
    try:
        on_workers = client.run(lambda dask_worker: int(dask_worker.of_a_test.sum()))
        assert on_workers == {left: 3, right: 3}
        on_scheduler = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.of_a_test)
        assert on_scheduler == "started"
        on_nannies = client.run(lambda dask_worker: dask_worker.of_a_test, nanny=True)
        assert set(on_nannies.values()) == {"set up"}
    finally:
        client.unregister_worker_plugin("of-a-test")
        client.unregister_scheduler_plugin("of-a-test")
        client.unregister_worker_plugin("of-a-test", nanny=True)


def test_a_published_dataset_is_seen_by_another_client(client, left):
    array = client.submit(np.arange, COUNT, workers=[left])
    client.publish_dataset(numbers=array)
    try:
        with Client(client.scheduler.address, set_as_default=False) as other:
            assert other.list_datasets() == ("numbers",)
            found = other.get_dataset("numbers")
            assert isinstance(found, Future)
            assert found.result(PATIENCE_SECONDS).sum() == TOTAL
    finally:
        client.unpublish_dataset("numbers")


def test_a_task_starts_tasks(client, left, right):
    def outer(worker):
        with worker_client(timeout=PATIENCE_SECONDS) as inner:
            array = inner.submit(np.arange, COUNT, workers=[worker], pure=False)
            total = inner.submit(operator.methodcaller("sum"), array, workers=[worker])
            return int(total.result(PATIENCE_SECONDS)), int(array.result(PATIENCE_SECONDS)[-1])

    found = client.submit(outer, right, workers=[left]).result(PATIENCE_SECONDS)
    assert found == (TOTAL, COUNT - 1)


def test_scatter_to_all_and_replicate(client, left, right):
    array = client.scatter(np.arange(COUNT), broadcast=True)
    assert set(client.who_has(array)[array.key]) == {left, right}
    for worker in (left, right):
        total = client.submit(np.sum, array, workers=[worker], pure=False)
        assert total.result(PATIENCE_SECONDS) == TOTAL


def test_errors_come_back_with_their_traceback(client, left):
    def fail(array):
        raise KeyError(int(array.sum()))

    failed = client.submit(fail, np.arange(COUNT), workers=[left], pure=False)
    with pytest.raises(KeyError, match=str(TOTAL)):
        failed.result(PATIENCE_SECONDS)
