"""Idle slabs: kept for a while, the most recently used on top, and given back oldest first.

A lock guards them, because native threads trim them without the GIL. No memory is mapped or
unmapped under the lock, and no file is read.
"""
