"""A mailbox: native threads post completions to it, and one event loop collects them."""

from typing import TypedDict

from dask_fabric.linux import pthread_mutex_t

class Completion(TypedDict):
    tag: int
    progress: int
    error: int
    moved_bytes: int
    busy_ns: int
    posted_ns: int

class CompletionNode(TypedDict):
    completion: Completion
    next: CompletionNode

class Mailbox(TypedDict):
    event_fd: int
    mutex: pthread_mutex_t
    first: CompletionNode
    last: CompletionNode
