"""Memory of this process that is registered with libfabric.

Theory of operation
-------------------
A network card reads and writes memory that was registered: its pages are pinned, and the card knows
where they are. That takes up to 100 microseconds for each MB. So memory of the pool is registered
by whole slabs, at the first frame in it, and stays registered while the pool has the slab. Before a
slab goes back to the system, or other pages take its place, the pool calls `forget`. All other
memory, such as the arrays of users, is registered while a frame in it is on offer.

All registrations are in one array, ordered by their first byte, so that a frame finds one that
contains it. A lock guards them; nothing is called under it but libfabric.
"""
