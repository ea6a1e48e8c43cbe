"""The benchmark suite: measures any scheme that Dask knows by its public API."""
