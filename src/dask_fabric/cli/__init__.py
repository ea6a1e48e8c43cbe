"""The command ``dask fabric``: reports on paths, traffic, history and speed, and GPU workers."""
