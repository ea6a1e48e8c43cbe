"""Sends and receives of the `ucx` path: a table of them, and the reports of their ends.

All of this needs the worker's lock. An operation is named by an integer, its slot in the lower half
and a generation in the upper, so that the name of one that is over finds nothing.
"""
