"""The interface to Dask: the comms, listeners and connectors that ``distributed`` uses."""
