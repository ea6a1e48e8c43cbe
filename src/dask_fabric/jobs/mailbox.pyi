"""A mailbox: where native threads put the ends of jobs, for one event loop to collect."""

from typing import TypedDict

from dask_fabric.linux import pthread_mutex_t

class Completion(TypedDict):
    tag: int
    progress: int
    error: int
    moved_bytes: int
    busy_ns: int
    posted_ns: int

class Ended(TypedDict):
    completion: Completion
    next: Ended

class Mailbox(TypedDict):
    event_fd: int
    mutex: pthread_mutex_t
    first: Ended
    last: Ended
