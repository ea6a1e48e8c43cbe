"""Frames on their way through UCX: one job for all that one message sends or receives so.

UCX ends each frame by itself, in its own thread; the last one ends the job.
"""

import logging
from typing import TypedDict

from dask_fabric.jobs.completions import Job
from dask_fabric.jobs.mailbox import Ended, Mailbox
from dask_fabric.linux import pthread_mutex_t

logger = logging.getLogger(__name__)

class FrameJob(Job):
    """Frames of one message that are sent or received by one endpoint."""

class Transit(TypedDict):
    name: int
    tag: int
    operations: int
    operation_count: int
    left_count: int
    error: int
    moved_bytes: int
    mailbox: Mailbox
    ended: Ended
    next: Transit

class Engine(TypedDict):
    mutex: pthread_mutex_t
    first: Transit
    transit_count: int
