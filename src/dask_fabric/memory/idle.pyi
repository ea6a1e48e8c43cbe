"""Idle slabs: a free list per size class, most recently used on top, and a list of all by age.

A lock guards them, because native threads trim them without the GIL. No memory is mapped or
unmapped under the lock, and no file is read.
"""

from typing import TypedDict

class Slab(TypedDict):
    data: bytes
    capacity_bytes: int
    size_class: int
    is_pinned: bool
    has_small_pages: bool
    released_ns: int
    release_number: int
    newer: Slab
    older: Slab
    above: Slab
    below: Slab

class Figures(TypedDict):
    in_use_bytes: int
    in_use_count: int
    idle_bytes: int
    idle_count: int
    peak_idle_bytes: int
    hits_count: int
    misses_count: int
    evicted_bytes: int
    trimmed_bytes: int
    pinned_bytes: int
    max_idle_bytes: int
    pressure_limit_bytes: int
    idle_seconds: float

class Usage(TypedDict):
    in_use_bytes: int
    in_use_count: int
    hits_count: int
    misses_count: int
    pinned_bytes: int

class pthread_mutex_t(TypedDict): ...
