"""The command ``dask fabric``: what this host and its peers have, what they use, and why."""
