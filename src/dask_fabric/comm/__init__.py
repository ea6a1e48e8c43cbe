"""The border to Dask: what ``distributed`` sees of dask-fabric."""
