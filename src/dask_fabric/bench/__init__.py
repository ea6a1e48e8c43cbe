"""The benchmark suite: any scheme that Dask knows, measured by its public API."""
