"""``dask fabric doctor``: the paths that a host or a pair uses, why not the rest, and remedies."""
