"""Libraries that compute with Dask, on a cluster whose processes talk by our schemes."""

from __future__ import annotations

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import h5py
import joblib
import lightgbm
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import sparse
import torch
import xarray as xr
import xgboost
import xgboost.dask
from distributed import Client
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from .conftest import PATIENCE_SECONDS

SIDE, CHUNK = 600, 150
TEXT = "string[pyarrow]"  # to which Dask converts columns of text


@pytest.fixture(autouse=True)
def _bounded(client):
    """Collections are computed on this module's cluster, without a wait for ever."""
    with client.as_current():
        yield


def result_of(client: Client, collection):
    return client.compute(collection).result(PATIENCE_SECONDS)


def table(count: int = 20_000) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "key": rng.integers(0, 500, count),
            "text": pd.Series(rng.integers(0, 100, count)).map("text {}".format).astype(TEXT),
            "value": rng.random(count),
        }
    )


@pytest.fixture
def dataset():
    values = np.arange(SIDE * SIDE, dtype="f8").reshape(SIDE, SIDE)
    axis = np.arange(SIDE)
    times = pd.date_range("2000", periods=SIDE)
    return xr.Dataset(
        {"t": (("time", "x"), values), "mask": (("time", "x"), values % 2 == 0)},
        coords={"time": times, "x": axis},
        attrs={"title": "made"},
    )


def anomaly(dataset):
    """Needs blocks of several workers: means over both dimensions."""
    centred = dataset.t - dataset.t.mean("time")
    return (centred * dataset.mask).std("x")


def test_xarray_with_zarr(client, dataset, tmp_path):
    dataset.to_zarr(tmp_path / "in.zarr", consolidated=False)
    opened = xr.open_zarr(tmp_path / "in.zarr", consolidated=False, chunks={"time": CHUNK})
    computed = result_of(client, anomaly(opened))
    xr.testing.assert_allclose(computed, anomaly(dataset))
    stored = (opened * 2).to_zarr(tmp_path / "out.zarr", consolidated=False, compute=False)
    result_of(client, stored)
    written = xr.open_zarr(tmp_path / "out.zarr", consolidated=False, chunks=None)
    xr.testing.assert_equal(written.load(), dataset * 2)


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
def test_xarray_with_netcdf(client, dataset, tmp_path, engine):
    files = [tmp_path / f"{part}.nc" for part in range(4)]
    for part, file in enumerate(files):
        dataset.isel(time=slice(part * CHUNK, (part + 1) * CHUNK)).to_netcdf(file, engine=engine)
    with xr.open_mfdataset(files, engine=engine, parallel=True, chunks={"x": CHUNK}) as opened:
        assert opened.t.data.npartitions == 16
        computed = result_of(client, anomaly(opened))
    xr.testing.assert_allclose(computed, anomaly(dataset))


def test_datasets_opened_on_one_worker_are_read_on_another(client, left, right, dataset, tmp_path):
    dataset.to_zarr(tmp_path / "a.zarr", consolidated=False)
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    lazy = [
        client.submit(
            xr.open_zarr, tmp_path / "a.zarr", consolidated=False, chunks=None, workers=[left]
        ),
        client.submit(
            xr.open_dataset, tmp_path / "a.nc", engine="h5netcdf", chunks=None, workers=[left]
        ),
    ]
    for future in lazy:
        loaded = client.submit(xr.Dataset.load, future, workers=[right]).result(PATIENCE_SECONDS)
        xr.testing.assert_identical(loaded, dataset)


def test_arrays_of_h5py(client, tmp_path):
    values = np.random.default_rng(0).random((SIDE, SIDE))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = values
    with h5py.File(tmp_path / "a.h5", "r") as file:
        array = da.from_array(file["a"], chunks=CHUNK)
        total = result_of(client, array + array.T)
    np.testing.assert_array_equal(total, values + values.T)


def test_sparse_blocks(client):
    dense = np.random.default_rng(0).random((SIDE, SIDE))
    dense[dense < 0.9] = 0
    blocks = da.from_array(dense, chunks=CHUNK).map_blocks(sparse.COO)
    sums = result_of(client, blocks.sum(axis=0))  # others are slow at first: Numba compiles them
    assert isinstance(sums, sparse.COO)
    np.testing.assert_allclose(sums.todense(), dense.sum(axis=0))
    stacked = result_of(client, da.concatenate([blocks, blocks.T]))
    np.testing.assert_array_equal(stacked.todense(), np.concatenate([dense, dense.T]))


def test_blocks_of_scipy_sparse(client):
    dense = np.eye(SIDE) * 3
    blocks = da.from_array(dense, chunks=(CHUNK, SIDE)).map_blocks(scipy.sparse.csr_matrix)
    stacked = result_of(client, blocks)
    assert scipy.sparse.issparse(stacked)
    np.testing.assert_array_equal(stacked.toarray(), dense)


def fit(weights: dict, seed: int) -> dict:
    """Take a step of gradient descent on random data; give the new weights."""
    model = torch.nn.Linear(200, 2000)
    model.load_state_dict(weights)
    inputs = torch.rand(16, 200, generator=torch.Generator().manual_seed(seed))
    model(inputs).square().mean().backward()
    with torch.no_grad():
        return {name: part - 0.01 * part.grad for name, part in model.named_parameters()}


def mean(fitted: list[dict]) -> dict:
    return {name: torch.stack([of[name] for of in fitted]).mean(0) for name in fitted[0]}


def test_weights_of_torch_are_averaged_over_workers(client, left, right):
    first = torch.nn.Linear(200, 2000).state_dict()
    futures = [
        client.submit(fit, first, seed, workers=[worker])
        for seed, worker in enumerate((left, right))
    ]
    averaged = client.submit(mean, futures).result(PATIENCE_SECONDS)
    for name, weights in mean([fit(first, seed) for seed in range(2)]).items():
        torch.testing.assert_close(averaged[name], weights)


def test_a_module_of_torch_moves(client, left, right):
    model = client.submit(torch.nn.Linear, 200, 2000, workers=[left])
    weights = client.submit(lambda model: model.weight.detach(), model, workers=[right])
    assert torch.equal(model.result(PATIENCE_SECONDS).weight, weights.result(PATIENCE_SECONDS))


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    features = rng.random((4000, 20))
    return features, features @ np.arange(20) + rng.random(4000)


def test_scikit_learn_by_joblib(client, points):
    features, target = points
    forest = RandomForestRegressor(20, max_depth=6, random_state=0, n_jobs=-1)
    search = GridSearchCV(SVC(), {"C": [0.1, 1, 10]}, cv=2)
    few, classes = features[:300], target[:300] > target[:300].mean()
    expected, best = forest.fit(features, target).predict(features), search.fit(few, classes)
    with joblib.parallel_config("dask", client=client, scatter=[features]):
        np.testing.assert_allclose(forest.fit(features, target).predict(features), expected)
        found = GridSearchCV(SVC(), search.param_grid, cv=2).fit(few, classes)
    assert found.best_params_ == best.best_params_
    np.testing.assert_allclose(
        found.cv_results_["mean_test_score"], best.cv_results_["mean_test_score"]
    )


@pytest.fixture
def blocks(client, left, right, points):
    """The points as arrays of Dask, half of them on each worker."""
    features, target = (
        da.concatenate(
            [
                da.from_delayed(
                    client.submit(
                        np.array, part, workers=[worker], allow_other_workers=False, pure=False
                    ),
                    part.shape,
                    part.dtype,
                )
                for part, worker in zip(np.split(array, 2), (left, right), strict=True)
            ]
        )
        for array in points
    )
    return features, target


class Together(xgboost.callback.TrainingCallback):
    """Fails if not both workers train one model."""

    def before_training(self, model):
        assert xgboost.collective.get_world_size() == 2
        return model


def test_xgboost(client, blocks, points):
    """Its workers connect by sockets of their own, to a tracker at the scheduler's address."""
    matrix = xgboost.dask.DaskDMatrix(client, *blocks)
    trained = xgboost.dask.train(
        client,
        {"tree_method": "hist", "max_depth": 4},
        matrix,
        num_boost_round=20,
        evals=[(matrix, "train")],
        callbacks=[Together()],
    )
    errors = trained["history"]["train"]["rmse"]
    assert errors[-1] < errors[0] / 2
    features, _ = points
    predicted = result_of(client, xgboost.dask.predict(client, trained, blocks[0]))
    expected = trained["booster"].predict(xgboost.DMatrix(features))
    np.testing.assert_allclose(predicted, expected, rtol=1e-5)


def test_lightgbm(client, blocks, points, left, right, capfd):
    """Its workers connect by sockets of their own, at the hosts of the workers' addresses."""
    model = lightgbm.DaskLGBMRegressor(n_estimators=20, client=client, time_out=1)
    model.fit(*blocks)
    features, target = points
    predicted = result_of(client, model.predict(blocks[0]))
    np.testing.assert_allclose(predicted, model.to_local().predict(features))
    assert np.square(predicted - target).mean() < np.var(target) / 2
    assert "num_machines: 2" in model.booster_.model_to_string()


def test_a_dataframe_is_shuffled_and_merged(client):
    frame, by_key = table(), pd.DataFrame({"key": np.arange(500), "weight": np.arange(500.0)})
    parts, others = dd.from_pandas(frame, npartitions=8), dd.from_pandas(by_key, npartitions=4)
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        shuffled = result_of(client, parts.shuffle("key"))
        merged = result_of(client, parts.merge(others, on="key", broadcast=False))
    columns = ["key", "text", "value"]
    for found, expected in ((shuffled, frame), (merged, frame.merge(by_key, on="key"))):
        found, expected = (
            one.sort_values(columns, ignore_index=True)[sorted(expected)]
            for one in (found, expected)
        )
        pd.testing.assert_frame_equal(found, expected)


def test_an_array_is_rechunked_by_p2p(client):
    values = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    array = da.from_array(values, chunks=(CHUNK, SIDE)).rechunk((SIDE, CHUNK), method="p2p")
    np.testing.assert_array_equal(result_of(client, array), values)


def test_parquet_by_dataframe_polars_and_pyarrow(client, left, right, tmp_path):
    frame = table()
    result_of(client, dd.from_pandas(frame, npartitions=4).to_parquet(tmp_path, compute=False))
    means = result_of(client, dd.read_parquet(tmp_path).groupby("text").value.mean())
    expected = frame.groupby("text").value.mean()
    pd.testing.assert_series_equal(means.sort_index(), expected)

    lazy = client.submit(pl.read_parquet, tmp_path / "*.parquet", workers=[left])
    grouped = client.submit(
        lambda frame: frame.group_by("text").agg(pl.col("value").mean()).sort("text"),
        lazy,
        workers=[right],
    ).result(PATIENCE_SECONDS)
    np.testing.assert_allclose(grouped["value"], expected)
    arrow = client.submit(pl.DataFrame.to_arrow, lazy, workers=[left])
    total = client.submit(pa.Table.num_rows.__get__, arrow, workers=[right])
    assert total.result(PATIENCE_SECONDS) == len(frame)


def test_a_bag(client):
    numbers = db.from_sequence(range(10_000), npartitions=8)
    counts = result_of(client, numbers.map(lambda n: n % 7).frequencies())
    assert dict(counts)[0] == len(range(0, 10_000, 7))
    grouped = dict(result_of(client, numbers.groupby(lambda n: n % 7, shuffle="tasks")))
    assert sorted(grouped[3]) == list(range(3, 10_000, 7))
