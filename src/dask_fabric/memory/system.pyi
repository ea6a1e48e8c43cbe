"""Calls of the operating system, by the pool and memory files.

Only `obtain` needs the GIL, none needs a lock.

Memory below 2 MiB comes from the C library. Larger memory is mapped with huge pages, which cost a
third of the time when they are fresh. Writing one byte makes a whole huge page resident, so
neighbouring slabs share the pages at their borders: they are cut one after the other from a *run*,
a mapping of 128 MiB, and each is unmapped separately.
"""
