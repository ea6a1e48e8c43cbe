"""Sends and receives of the `ucx` path: their table, their lists, and the calls of callbacks.

All of this needs the worker's lock. An operation is named by an integer: its slot in the lower half
and a generation in the upper, so that an old name finds nothing.
"""
