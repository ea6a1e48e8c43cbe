"""The page ``/fabric`` of Dask's dashboard."""
