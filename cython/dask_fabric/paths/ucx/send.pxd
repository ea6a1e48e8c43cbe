"""Outgoing frames."""

from dask_fabric.paths.ucx.state cimport Operation

cdef void send_frame(Operation *operation) noexcept nogil
