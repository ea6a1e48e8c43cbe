"""A communication backend for Dask ``distributed``, chosen by ``protocol="fabric"``."""

from importlib.metadata import version

__version__ = version("dask-fabric")
