"""Peers of the `ucx` path, their connections, and the endpoints that share them.

All of this needs the worker's lock. A connection is made in the progress thread, when the first
frame is offered. Before that, each endpoint greets its counterpart by a small message: UCX may hang
on a large one before it is wired up. An offer waits until the counterpart has greeted or answered.

UCX pairs the n-th connection of one side with the n-th of the other. A side that has closed its one
alone is ahead; a greeting tells its number, and who is behind breaks its own and catches up. So
both ends always mean the same connection, and closing it ends the receives as well as the sends.
"""
