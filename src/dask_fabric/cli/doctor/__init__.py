"""``dask fabric doctor``: what a host and a pair use, why not the rest, and the remedy."""
