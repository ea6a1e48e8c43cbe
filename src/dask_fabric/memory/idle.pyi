"""Idle slabs: a free list per size class, most recently used on top, and a list of all by age.

A lock guards them, because native threads trim them without the GIL. No memory is mapped or
unmapped under the lock, and no file is read.
"""
